"""How the operator's programs reach Redis: by themselves with redis-py, and through Celery, which has its own words.

User, password file and certificates are those of every other program (ziya/redis_login.py).
"""

from __future__ import annotations

from typing import Any
from urllib.parse import unquote, urlsplit

import redis

from services.operator.settings import OperatorSettings
from ziya.redis_login import FilePassword, RedisLogin


class BrokerPassword(FilePassword):
    """Made by kombu, by its name in the URL and without arguments: so it reads the settings itself."""

    def __init__(self) -> None:
        settings = OperatorSettings.load()
        assert settings.redis_password_file is not None  # else it is not named in the URL
        user = unquote(urlsplit(settings.operator_broker_url).username or "")
        super().__init__(user, settings.redis_password_file)


def redis_client(settings: OperatorSettings, *, seconds: float) -> redis.Redis:
    """`seconds` are the patience with each command, and with connecting."""
    login, url = RedisLogin.of(settings), settings.operator_broker_url
    options: dict[str, Any] = login.options(url)
    return redis.Redis.from_url(login.bare(url), socket_timeout=seconds, socket_connect_timeout=seconds, **options)


def celery_url(settings: OperatorSettings) -> str:
    """As kombu wants it: its scheme for a Unix socket, and who gives the password."""
    login = RedisLogin.of(settings)
    url = login.bare(settings.operator_broker_url)
    if login.password_file is not None:
        return f"{url}?credential_provider={BrokerPassword.__module__}.{BrokerPassword.__name__}"
    return url


def celery_tls(settings: OperatorSettings) -> dict[str, Any] | None:
    """What kombu hands on to redis-py for a rediss:// URL; None for any other."""
    return RedisLogin.of(settings).tls_options(settings.operator_broker_url) or None
