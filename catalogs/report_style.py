"""The report's looks: a palette for light and dark, the style sheet and the table sorting script."""

from __future__ import annotations

from collections.abc import Mapping

LIGHT: Mapping[str, str] = {
    "page": "#f7f8f8", "surface": "#ffffff", "ink": "#17212b", "quiet": "#56626e", "rule": "#dde2e6", "soft": "#eef1f3",
    "accent": "#1d6f75", "gain": "#79bdbb", "lacks": "#b6491d", "notice": "#fdf3e4", "notice-ink": "#6d4209",
    "s0": "#ffffff", "s0-ink": "#a03f17", "s1": "#e4f1f0", "s1-ink": "#17343a", "s2": "#c3e1df", "s2-ink": "#102f34",
    "s3": "#97cbc9", "s3-ink": "#0b292d", "s4": "#66b0b0", "s4-ink": "#06191c", "s5": "#1d6f75", "s5-ink": "#ffffff",
}  # fmt: skip
DARK: Mapping[str, str] = {
    "page": "#0f1418", "surface": "#151c22", "ink": "#e5eaee", "quiet": "#9aa8b4", "rule": "#2a353e", "soft": "#1c252c",
    "accent": "#58bdb9", "gain": "#2c6f70", "lacks": "#f08a58", "notice": "#33270f", "notice-ink": "#f3cf8f",
    "s0": "#151c22", "s0-ink": "#f3966a", "s1": "#17302f", "s1-ink": "#cfe6e4", "s2": "#1a4344", "s2-ink": "#d9eeec",
    "s3": "#1f5a5b", "s3-ink": "#e6f5f4", "s4": "#276d6e", "s4-ink": "#ffffff", "s5": "#62c6c1", "s5-ink": "#06201f",
}  # fmt: skip


def _variables(palette: Mapping[str, str]) -> str:
    return "".join(f"--{name}:{colour};" for name, colour in palette.items())


_SHADES = "".join(f".s{i}{{background:var(--s{i});color:var(--s{i}-ink)}}" for i in range(6))

_RULES = """
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%}
body{margin:0;background:var(--page);color:var(--ink);font:15px/1.5 Inter,"Helvetica Neue",Helvetica,"Segoe UI",Roboto,
Arial,"Liberation Sans",sans-serif;font-variant-numeric:tabular-nums}
main{max-width:1200px;margin:0 auto;padding:48px 32px 40px}
code,pre{font-family:ui-monospace,"SF Mono",Menlo,Consolas,"Liberation Mono","DejaVu Sans Mono",monospace;
font-size:12px}
small{font-size:12px;font-weight:400;color:var(--quiet)}
.sr{position:absolute;width:1px;height:1px;overflow:hidden;clip-path:inset(50%);white-space:nowrap}
h1{font-size:32px;line-height:1.15;letter-spacing:-.02em;font-weight:650;margin:2px 0 6px;text-wrap:balance}
h2{font-size:20px;letter-spacing:-.01em;font-weight:650;margin:0 0 4px}
h3{font-size:13px;font-weight:600;margin:0 0 6px;color:var(--quiet)}
.project{margin:0;color:var(--accent);font-weight:600}
.meta,.about,.note{margin:0;color:var(--quiet);max-width:76ch}
.dot{margin:0 .5em}
.lead{display:flex;align-items:center;gap:20px;margin:28px 0 0;font-size:18px;line-height:1.45;max-width:860px}
.lead strong{font-size:64px;line-height:1;font-weight:650;letter-spacing:-.04em;color:var(--accent)}
.lead b{white-space:nowrap;font-weight:600}
.empty{background:var(--notice);color:var(--notice-ink);padding:12px 16px;border-radius:6px;margin:24px 0 0}
.empty code{font-size:13px}
.figures{display:grid;grid-template-columns:repeat(auto-fit,minmax(120px,1fr));margin:28px 0 0;
border-top:1px solid var(--rule);border-bottom:1px solid var(--rule)}
.figures div{padding:12px 16px 12px 0}
.figures dt{color:var(--quiet);font-size:13px}
.figures dd{margin:0;font-size:24px;line-height:1.25;font-weight:600;letter-spacing:-.02em}
.figures small{display:block;letter-spacing:0;line-height:1.4}
section{margin-top:52px}
.bars{list-style:none;margin:18px 0 22px;padding:0;max-width:760px}
.bars li{display:grid;grid-template-columns:110px 1fr 110px 150px;gap:14px;align-items:center;padding:3px 0}
.num{text-align:right;white-space:nowrap}
.num small{margin-left:6px}
.quiet{color:var(--quiet)}
.bar{display:flex;height:10px;background:var(--soft);border-radius:2px;overflow:hidden}
.bar i{background:var(--accent)}
.bar .gain{background:var(--gain)}
.bar .doubt,.key.doubt{background:repeating-linear-gradient(135deg,var(--lacks) 0 2px,transparent 2px 5px)}
.legend{display:flex;flex-wrap:wrap;gap:4px 18px;list-style:none;margin:0 0 10px;padding:0;font-size:13px;
color:var(--quiet)}
.legend li{display:flex;align-items:center;gap:7px}
.key{display:inline-block;width:22px;height:13px;border-radius:2px;box-shadow:inset 0 0 0 1px var(--rule)}
.about .key{vertical-align:-1px}
.x{background:repeating-linear-gradient(135deg,var(--rule) 0 1px,transparent 1px 5px)}
.scroll{overflow:auto;background:var(--surface);border:1px solid var(--rule);border-radius:6px}
.scroll.tall{max-height:880px}
.tall tfoot{position:sticky;bottom:0;z-index:2;background:var(--surface)}
.scroll:focus-visible,th[data-sort]:focus-visible,summary:focus-visible{outline:2px solid var(--accent);
outline-offset:1px}
table{border-collapse:separate;border-spacing:0;width:100%;font-size:13px}
th{font-weight:400;text-align:left}
.heat thead{position:sticky;top:0;z-index:2;background:var(--surface)}
.heat thead tr:last-child>*{border-bottom:1px solid var(--rule);vertical-align:bottom;line-height:1.25;
padding:2px 8px 7px}
.heat thead th{font-weight:600;text-align:right;min-width:76px}
.heat thead th.name{text-align:left}
.heat thead .layer{text-align:left;color:var(--quiet);font-weight:400;padding:8px 8px 2px;
border-left:1px solid var(--rule)}
.heat td{padding:4px 8px;text-align:right;white-space:nowrap;border:1px solid var(--surface);border-width:0 1px 1px 0}
.heat td small{font-size:11px;color:inherit;opacity:.88}
.heat tbody th,.heat tfoot th,.heat thead th.name{position:sticky;left:0;z-index:1;background:var(--surface);
padding-left:14px;padding-right:14px;white-space:nowrap}
.heat .s0{box-shadow:inset 0 0 0 1px var(--rule)}
.heat .z{color:var(--quiet)}
.heat .sum{padding-left:14px;min-width:60px}
.heat .lacks{min-width:136px;padding-right:14px;color:var(--lacks);font-weight:600}
.heat thead tr:last-child>.lacks{padding-right:86px}
.heat td.lacks .bar{display:inline-block;width:62px;height:8px;margin-left:10px;background:none;text-align:left}
.heat td.lacks .bar i{display:block;height:8px;background:var(--lacks);border-radius:1px}
.heat tfoot>tr>*{border-top:1px solid var(--rule);font-weight:600;padding-top:7px;padding-bottom:7px}
.note{font-size:13px;margin-top:10px}
details{margin-top:12px}
summary{cursor:pointer;color:var(--accent);font-weight:600;padding:4px 0;margin-bottom:8px}
th[data-sort].on{cursor:pointer}
th[data-sort].on:hover{color:var(--accent)}
th[aria-sort=descending]::after{content:" ↓"}
th[aria-sort=ascending]::after{content:" ↑"}
.columns{display:grid;grid-template-columns:minmax(0,5fr) minmax(0,7fr);gap:40px;margin-top:16px;align-items:start}
.list td,.list th{padding:5px 0 5px 14px;border-bottom:1px solid var(--soft);text-align:right;white-space:nowrap}
.list th:first-child{padding-left:0;text-align:left;white-space:normal}
.list thead th{color:var(--quiet);font-size:12px;border-color:var(--rule)}
.list tfoot th,.list tfoot td{border:0;color:var(--quiet)}
.list tfoot tr:last-child>*{color:var(--ink);font-weight:600;border-top:1px solid var(--rule)}
.list td small{margin-left:5px}
.list .wide{width:26%}
.cards{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(500px,100%),1fr));gap:16px;margin-top:16px}
figure{margin:0;min-width:0}
.card{display:flex;gap:12px;background:var(--surface);border:1px solid var(--rule);border-radius:6px;padding:12px;
break-inside:avoid}
.card>div{flex:1;min-width:0;display:flex;flex-direction:column;gap:10px}
.bev{width:116px;height:116px;border-radius:3px;flex:none}
.strip{width:100%;height:auto;border-radius:3px;background:#10151b;display:block}
.card pre{margin:0;max-height:220px;overflow:auto;white-space:pre-wrap;overflow-wrap:anywhere;line-height:1.5}
figcaption{display:flex;flex-wrap:wrap;align-items:baseline;gap:2px 12px;font-size:13px}
figcaption code{color:var(--quiet);overflow-wrap:anywhere}
.card figcaption{margin-top:auto}
.chip{font-weight:600;white-space:nowrap}
.chip i{display:inline-block;width:9px;height:9px;border-radius:50%;margin-right:6px}
.panels{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(500px,100%),1fr));gap:16px;margin-top:16px}
.panel{background:var(--surface);border:1px solid var(--rule);border-radius:6px;padding:8px 12px 12px;
break-inside:avoid;display:flex;flex-direction:column;justify-content:space-between}
.panel svg{width:100%;height:auto;display:block}
.panel figcaption{padding-left:6px}
.facts{margin:12px 0 0;display:grid;grid-template-columns:repeat(auto-fill,minmax(min(340px,100%),1fr));gap:0 40px}
.facts div{display:flex;justify-content:space-between;gap:16px;padding:6px 0;border-bottom:1px solid var(--rule)}
.facts dt{color:var(--quiet)}
.facts dd{margin:0;text-align:right;overflow-wrap:anywhere}
.queries{list-style:none;margin:12px 0 0;padding:0}
.queries p{margin:0 0 4px}
.queries pre{margin:0 0 16px;padding:10px 14px;background:var(--surface);border:1px solid var(--rule);border-radius:6px;
overflow-x:auto;user-select:all;font-size:13px}
footer{margin-top:52px;padding-top:12px;border-top:1px solid var(--rule);color:var(--quiet);font-size:13px}
@media (max-width:820px){main{padding:28px 16px}.columns{grid-template-columns:1fr}.lead{font-size:16px}
.lead strong{font-size:44px}.bars li{grid-template-columns:90px 1fr 60px}.bars .quiet,.bars small{display:none}
.card{flex-wrap:wrap}}
@media print{body{background:#fff;font-size:11px}main{max-width:none;padding:0}.scroll{overflow:visible;border:0}
.scroll.tall{max-height:none}.heat thead,.tall tfoot{position:static}
.heat,.heat td small{font-size:8px}.heat .bar{display:none!important}.heat td,.heat th{padding:2px 4px!important;
min-width:0!important}*{print-color-adjust:exact;-webkit-print-color-adjust:exact}
section{margin-top:28px}tr{break-inside:avoid}}
"""

CSS = (
    f":root{{color-scheme:light dark;{_variables(LIGHT)}}}"
    f"@media screen and (prefers-color-scheme:dark){{:root{{{_variables(DARK)}}}}}" + _SHADES + _RULES
)

SCRIPT = """
document.querySelectorAll('table.sortable').forEach(table => {
  const body = table.tBodies[0], heads = [...table.querySelectorAll('th[data-sort]')];
  const value = (row, i) => row.cells[i].dataset.v ?? row.cells[i].textContent;
  heads.forEach(head => {
    const sort = () => {
      const down = head.getAttribute('aria-sort') ? head.getAttribute('aria-sort') === 'ascending'
        : head.dataset.sort === 'number';
      heads.forEach(h => h.removeAttribute('aria-sort'));
      head.setAttribute('aria-sort', down ? 'descending' : 'ascending');
      const i = head.cellIndex, number = head.dataset.sort === 'number';
      const rows = [...body.rows].sort((a, b) =>
        number ? value(a, i) - value(b, i) : value(a, i).localeCompare(value(b, i)));
      body.append(...(down ? rows.reverse() : rows));
    };
    head.tabIndex = 0;
    head.classList.add('on');
    head.addEventListener('click', sort);
    head.addEventListener('keydown', e => { if (e.key === 'Enter' || e.key === ' ') { e.preventDefault(); sort(); } });
  });
});
"""
