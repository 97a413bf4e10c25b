#!/bin/sh
# Starts Redis, writes its users before, and has it read passwords and certificates again when their Secrets change.
# No connection is lost by that but those of users whose password changed. Arguments are Redis's own.
set -eu
state=${STATE:-/data}
passwords=${PASSWORDS:-/etc/ziya/passwords} # a file for each user, where there are passwords
tls=${TLS:-/etc/ziya/tls} # tls.crt, tls.key and ca.crt, where there is TLS
rules=${RULES:-/etc/ziya/redis/users.acl}
pause=${PAUSE:-5} # seconds between two looks at the Secrets
overlap=${OVERLAP:-120} # for so long an old password is good beside the new one: not all pods get it at once

digest() { tr -d '\r\n' <"$1" | sha256sum | cut -d ' ' -f 1; }

# The digests of the passwords there are now, a name and a digest a line.
digests() {
  while read -r name _; do
    case "$name" in '' | '#'*) continue ;; esac
    if [ ! -s "$passwords/$name" ]; then
      echo "the Secret of Redis's passwords has no key $name" >&2
      return 1
    fi
    echo "$name $(digest "$passwords/$name")"
  done <"$rules"
}

# The file of users, with the digests of the files named. Probes need no password: whoever has none may only PING.
users() {
  echo "user default on nopass resetchannels -@all +ping"
  echo "user keeper on #$(digest "$state/keeper") resetchannels -@all +acl|load +config|set"
  while read -r name allowed; do
    case "$name" in '' | '#'*) continue ;; esac
    known=$(sed -n "s/^$name /#/p" "$@" | sort -u | tr '\n' ' ')
    echo "user $name on $known resetchannels -@all +ping +select $allowed"
  done <"$rules"
}

# Written beside and moved: Redis never reads half a file.
write_users() { users "$@" >"$state/users.new" && mv "$state/users.new" "$state/users.acl"; }

ask() {
  if [ -d "$passwords" ]; then
    set -- --user keeper --pass "$(cat "$state/keeper")" --no-auth-warning "$@"
  fi
  [ "$(redis-cli -s "$state/redis.sock" "$@")" = OK ]
}

new_passwords() {
  digests >"$state/digests.new" || return 1
  cmp -s "$state/digests" "$state/digests.new" && return 0
  write_users "$state/digests" "$state/digests.new" && ask ACL LOAD || return 1
  mv "$state/digests.new" "$state/digests"
  echo "passwords changed; the old ones end in $overlap seconds"
  changed=$(date +%s)
}

end_old_passwords() {
  [ -n "$changed" ] && [ "$(date +%s)" -ge $((changed + overlap)) ] || return 0
  write_users "$state/digests" && ask ACL LOAD || return 1
  echo "the old passwords ended"
  changed=""
}

new_certificate() {
  sum=$(cat "$tls/tls.crt" "$tls/tls.key" "$tls/ca.crt" | sha256sum)
  [ "$sum" = "$certificate" ] && return 0
  ask CONFIG SET tls-cert-file "$tls/tls.crt" tls-key-file "$tls/tls.key" tls-ca-cert-file "$tls/ca.crt" || return 1
  certificate=$sum
  echo "the certificate was read again"
}

# As long as Redis lives, which has this script's process.
keep() {
  while sleep "$pause" && kill -0 $$ 2>/dev/null; do
    if [ -d "$passwords" ]; then new_passwords && end_old_passwords || echo "passwords stay as they are" >&2; fi
    if [ -d "$tls" ]; then new_certificate || echo "the certificate stays as it is" >&2; fi
  done
}

changed="" certificate=""
umask 077
if [ -d "$passwords" ]; then
  head -c 32 /dev/urandom | sha256sum | cut -d ' ' -f 1 >"$state/keeper"
  digests >"$state/digests"
  write_users "$state/digests"
fi
if [ -d "$tls" ]; then certificate=$(cat "$tls/tls.crt" "$tls/tls.key" "$tls/ca.crt" | sha256sum); fi
if [ -d "$passwords" ] || [ -d "$tls" ]; then keep & fi
exec redis-server "$@"
