"""The style sheet of a report's page, and the script that sorts its table."""

STYLE = """
:root { color-scheme: light dark; --paper: #fff; --ink: #1c2024; --quiet: #5d6670;
  --line: #dde1e6; --panel: #f6f7f9;
  --succeeded: #2a8a4a; --failures: #c8322b; --other: #8b6fc0; --running: #1f77c9;
  --waiting: #b8871b; }
@media (prefers-color-scheme: dark) { :root { --paper: #15181c; --ink: #e6e9ec;
  --quiet: #9aa4af; --line: #30363d; --panel: #1d2126;
  --succeeded: #46b46b; --failures: #f0655d; --other: #a994dc; --running: #58a6ee;
  --waiting: #d9a93a; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2rem 1.5rem 4rem; max-width: 76rem; background: var(--paper);
  color: var(--ink); font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0 0 .2rem; overflow-wrap: anywhere; }
h2 { font-size: 1.05rem; margin: 0 0 .7rem; }
.id { font-family: ui-monospace, monospace; }
.id, footer, .note { color: var(--quiet); }
.id { font-size: .85rem; margin: 0 0 1.5rem; }
.gap { border-left: 4px solid var(--failures); padding: .4rem .9rem; background: var(--panel); }
.tiles { display: flex; flex-wrap: wrap; gap: .8rem; margin: 0 0 1.2rem; padding: 0; }
.tiles div { flex: 1 1 8rem; background: var(--panel); border-radius: 6px; padding: .7rem 1rem; }
.tiles dt { color: var(--quiet); font-size: .85rem; }
.tiles dd { margin: 0; font-size: 1.5rem; font-variant-numeric: tabular-nums; }
.bar { height: 14px; border-radius: 4px; overflow: hidden;
  margin: 0 0 1.6rem; background: var(--panel); }
.panels { display: grid; gap: 1.2rem; grid-template-columns: repeat(auto-fit, minmax(26rem, 1fr));
  margin: 0 0 2rem; }
.panel { border: 1px solid var(--line); border-radius: 8px; padding: 1rem 1.1rem; min-width: 0; }
.wide { grid-column: 1 / -1; }
.header { columns: 2 24rem; column-gap: 2.5rem; margin: 0; }
.header div { display: grid; grid-template-columns: 8rem 1fr; break-inside: avoid; }
.header dt { color: var(--quiet); }
.header dd { margin: 0; overflow-wrap: anywhere; }
svg { display: block; width: 100%; height: auto; }
.bar svg { height: 100%; }
svg text { fill: var(--ink); font: 13px system-ui, sans-serif; }
svg text.tick { fill: var(--quiet); font-size: 12px; }
.end { text-anchor: end; } .middle { text-anchor: middle; }
.grid { stroke: var(--line); } .mark { stroke: var(--quiet); }
.succeeded { fill: var(--succeeded); } .failures { fill: var(--failures); }
.other { fill: var(--other); } .running { fill: var(--running); } .waiting { fill: var(--waiting); }
.keys { display: flex; flex-wrap: wrap; gap: 0 1.1rem; margin: .5rem 0 0; font-size: .85rem; }
.keys svg, dt svg, td svg { display: inline-block; width: .75em; height: .75em;
  margin-right: .4em; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .87rem;
  font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .28rem 1rem .28rem 0; border-bottom: 1px solid var(--line);
  vertical-align: top; }
th { position: sticky; top: 0; background: var(--paper); color: var(--quiet); font-weight: 600;
  white-space: nowrap; }
th button { all: unset; cursor: pointer; } th button:focus-visible { outline: 2px solid; }
th[aria-sort=ascending] button::after { content: " ▲"; }
th[aria-sort=descending] button::after { content: " ▼"; }
td.n, th.n { text-align: right; } td.t { white-space: nowrap; }
td.w { overflow-wrap: anywhere; min-width: 14rem; }
footer { margin-top: 2rem; font-size: .85rem; }
@media (min-width: 64rem) { .scroll { overflow: visible; } }
@media (max-width: 40rem) { .panels { grid-template-columns: 1fr; } }
@media print { :root { color-scheme: light; --paper: #fff; --ink: #000; --quiet: #444;
  --line: #bbb; --panel: #f3f3f3; --succeeded: #2a8a4a; --failures: #c8322b; --other: #8b6fc0;
  --running: #1f77c9; --waiting: #b8871b; }
  body { padding: 0; max-width: none; font-size: 10pt; } th { position: static; }
  .tiles div { flex-basis: 5rem; padding: .5rem .6rem; }
  .panel, tr { break-inside: avoid; } .panels { grid-template-columns: 1fr 1fr; }
  * { print-color-adjust: exact; } }
"""

SCRIPT = """
for (const table of document.querySelectorAll("table.sorted"))
  table.querySelectorAll("th").forEach((th, column) => {
    const button = document.createElement("button");
    button.append(...th.childNodes);
    th.append(button);
    button.onclick = () => {
      const down = th.getAttribute("aria-sort") === "ascending";
      const key = row => row.cells[column].dataset.key ?? row.cells[column].textContent;
      const order = new Intl.Collator(undefined, {numeric: true}).compare;
      const rows = [...table.tBodies[0].rows].map(row => [key(row), row]);
      rows.sort(([a], [b]) => (a === "") - (b === "") || (down ? order(b, a) : order(a, b)));
      table.tBodies[0].append(...rows.map(([, row]) => row));
      table.querySelectorAll("th").forEach(other => other.removeAttribute("aria-sort"));
      th.setAttribute("aria-sort", down ? "descending" : "ascending");
    };
  });
"""
