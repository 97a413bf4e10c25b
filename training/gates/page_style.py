"""The report page's looks and its one script, in the page itself: it asks the network for nothing.

Both languages are in the page, and a rule hides one of them; the script sets which, by the browser's language, and
lets the reader change it. Without a script the page is in English.
"""

STYLE = """
:root { color-scheme: light dark; --paper: #fbfbf9; --card: #fff; --ink: #1d2126; --soft: #667079; --line: #e1e3e0;
  --good: #2c7a5b; --bad: #c0472f; --doubt: #b8862a; --mark: #3b6ea8; }
@media (prefers-color-scheme: dark) { :root { --paper: #14171a; --card: #1d2125; --ink: #e6e8ea; --soft: #98a2ab;
  --line: #31373d; --good: #4db48a; --bad: #e8765c; --doubt: #dcae55; --mark: #7db0e8; } }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0 auto; padding: 1rem clamp(.8rem, 3vw, 2rem) 4rem; max-width: 68rem; background: var(--paper);
  color: var(--ink); font: 15px/1.5 system-ui, "Noto Sans", "Noto Sans CJK SC", "PingFang SC", sans-serif; }
:root[data-language="zh"] .en, :root:not([data-language="zh"]) .zh { display: none; }
header { display: flex; justify-content: space-between; align-items: start; gap: 1rem; }
h1 { font-size: 1.45rem; line-height: 1.25; margin: .4rem 0 0; overflow-wrap: anywhere; }
h2 { font-size: 1.1rem; margin: 2.2rem 0 .7rem; }
h3 { font-size: .95rem; margin: 0 0 .4rem; font-weight: 600; }
p.note, figcaption, .soft { color: var(--soft); font-size: .87rem; }
p.note { margin: .1rem 0 .8rem; max-width: 46rem; }
button { font: inherit; color: var(--mark); background: none; border: 1px solid var(--line); border-radius: 6px;
  padding: .25rem .7rem; cursor: pointer; white-space: nowrap; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(8.5rem, 1fr)); gap: .7rem; margin-top: 1.2rem; }
.tile, .card { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: .7rem .9rem; }
.tile b { display: block; font-size: 1.45rem; line-height: 1.25; font-variant-numeric: tabular-nums; }
.good { color: var(--good); } .bad { color: var(--bad); } .doubtful { color: var(--doubt); }
.bar { display: grid; grid-template: "kind track count" / minmax(9rem, 17rem) 1fr 7.5rem; gap: 0 .8rem;
  align-items: center; padding: .15rem 0; }
.bars .gate { font-weight: 600; margin-top: .6rem; } .bars .gate:first-child { margin-top: 0; }
.bar .kind { grid-area: kind; overflow-wrap: anywhere; }
.bar .track { grid-area: track; height: .8rem; border-radius: 3px; background: var(--line); overflow: hidden; }
.bar .track i { display: block; height: 100%; min-width: 2px; background: var(--bad); }
.doubts .track i { background: var(--doubt); }
.bar .count { grid-area: count; text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 21rem), 1fr)); gap: .8rem; }
figure { margin: 0; } svg { display: block; width: 100%; height: auto; }
svg text { fill: var(--soft); font-size: 11px; }
svg rect { fill: var(--mark); } svg line { stroke: var(--line); }
.wide { overflow-x: auto; } table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; padding: .3rem .8rem .3rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
td code { overflow-wrap: anywhere; font-size: .85em; } td.key { white-space: nowrap; color: var(--soft); }
details { margin: .5rem 0; } summary { cursor: pointer; padding: .3rem 0; font-weight: 600; }
.samples { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 19rem), 1fr)); gap: .7rem; }
.sample { display: flex; gap: .8rem; overflow-wrap: anywhere; }
.sample img { width: 84px; height: 84px; object-fit: contain; flex: none; border-radius: 6px; }
.sample div { min-width: 0; flex: 1; } .sample p { margin: 0 0 .25rem; }
.sample .reason { font-size: .87rem; } .sample .role { color: var(--soft); font-size: .8rem; margin-right: .4em; }
td details { margin: 0; } td summary { padding: 0; }
@media (max-width: 34rem) { .bar { grid-template: "kind count" "track track" / 1fr auto; padding: .3rem 0; }
  td.key { white-space: normal; } th, td { padding-right: .5rem; } }
"""

SCRIPT = """
(() => {
  const root = document.documentElement;
  const show = (language) => { root.dataset.language = language; root.lang = language === "zh" ? "zh-CN" : "en"; };
  show((navigator.languages || [navigator.language]).find((one) => /^(zh|en)/i.test(one || ""))?.slice(0, 2)
    .toLowerCase() || "en");
  document.getElementById("language").addEventListener("click",
    () => show(root.dataset.language === "zh" ? "en" : "zh"));
})();
"""
