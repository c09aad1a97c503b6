"""Ratios, table and plot of `make bench`."""

from __future__ import annotations

from pathlib import Path


def ratios(rows: dict[str, dict]) -> dict[str, float | None]:
    """The figures that the targets are about, from the rows; None where a cell is empty."""

    def qps(name: str) -> float:
        return rows[name]["qps"]["median"]

    def latency(name: str) -> float:
        return rows[name]["latency_ms"]["median"]

    wanted = {
        "lazyar_vs_k0": lambda: qps("default") / qps("k0"),
        "dbw": lambda: qps("default") / qps("dbw_off"),
        "value_top": lambda: qps("default") / qps("value_all"),
        "shared_kv": lambda: qps("default") / qps("kv_per_beam"),
        "children_only": lambda: qps("default") / qps("full_vocabulary"),
        "live_levels": lambda: qps("live") / qps("default"),
        "int8": lambda: qps("int8") / qps("default"),
        "int8_live": lambda: qps("int8_live") / qps("default"),
        "hf_512": lambda: latency("hf_512") / latency("ours"),
        "hf_128": lambda: latency("hf_128") / latency("ours_128"),
        "ct2_512": lambda: latency("ct2_512") / latency("ours"),
        "ct2_512_int8": lambda: latency("ct2_512_int8") / latency("ours_int8"),
        "ct2_512_live": lambda: latency("ct2_512") / latency("ours_live"),
        "ct2_512_int8_live": lambda: latency("ct2_512_int8") / latency("ours_int8_live"),
        "latency_10m_vs_10k": lambda: latency("ads_10 M") / latency("ads_10 k"),
        "latency_10m_vs_10k_live": lambda: latency("live_10 M") / latency("live_10 k"),
    }
    found: dict[str, float | None] = {}
    for name, ratio in wanted.items():
        try:
            found[name] = ratio()
        except KeyError:  # an empty cell
            found[name] = None
    return found


def met(value: float | None, target: str) -> str:
    """Whether a figure meets a target like ">= 2.3"."""
    if value is None:
        return "not measured"
    relation, number = target.split()
    ok = value >= float(number) if relation == ">=" else value <= float(number)
    return "met" if ok else "MISSED"


def table(results: dict) -> str:
    """Rows and ratios as text."""
    lines = [f"{'':62}{'latency ms':>12}{'p95':>9}{'QPS':>9}"]
    for row in results["rows"].values():
        if "latency_ms" not in row:
            lines.append(f"{row['label']:62}  empty: {row['invalid']} invalid, {row['short']} short")
            continue
        figures = row["latency_ms"]["median"], row["latency_ms"]["p95"], row["qps"]["median"]
        lines.append(f"{row['label']:62}{figures[0]:12.1f}{figures[1]:9.1f}{figures[2]:9.1f}")
    lines.append("")
    for name, value in results["ratios"].items():
        target = results["targets"].get(name, "")
        shown = "     -" if value is None else f"{value:10.3f}"
        lines.append(f"{name:28}{shown}   {target:8} {met(value, target) if target else ''}")
    return "\n".join(lines)


def write_markdown(results: dict, path: Path) -> None:
    """The same as Markdown, to be pasted into RESULTS.md."""
    environment = results["environment"]
    versions = ", ".join(f"{k} {v}" for k, v in environment["versions"].items())
    lines = [
        f"`{results['command']}`: {environment['cpu']}, {results['threads']} thread(s), {versions}, commit "
        f"{environment['commit']}; {results['rounds']} interleaved rounds.",
        "",
        "| | latency, median | p95 | QPS |",
        "|---|---|---|---|",
    ]
    for row in results["rows"].values():
        if "latency_ms" in row:
            latency = row["latency_ms"]
            lines.append(
                f"| {row['label']} | {latency['median']:.1f} ms | {latency['p95']:.1f} ms "
                f"| {row['qps']['median']:.1f} |"
            )
        else:
            lines.append(f"| {row['label']} | | | |")
    lines += ["", "| ratio | figure | target | |", "|---|---|---|---|"]
    for name, value in results["ratios"].items():
        target = results["targets"].get(name, "")
        shown = "" if value is None else f"{value:.3g}"
        lines.append(f"| {name} | {shown} | {target} | {met(value, target) if target else ''} |")
    path.write_text("\n".join(lines) + "\n")


def plot(results: dict, path: Path) -> None:
    """Speed-ups, K sweep, catalogue sizes and load through Triton."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows, ratios = results["rows"], results["ratios"]
    figure, axes = plt.subplots(2, 2, figsize=(13, 9), constrained_layout=True)
    names = {
        "lazyar_vs_k0": "LazyAR vs K = 0",
        "dbw": "widths 128-256-512 vs 512-512-512",
        "value_top": "values for 64 beams vs all",
        "shared_kv": "context K/V shared vs per beam",
        "children_only": "children only vs full sort",
        "int8": "INT8 vs FP32",
        "live_levels": "last level live vs codebook",
        "ct2_512": "vs CTranslate2, 512 beams",
        "hf_128": "vs Hugging Face, 128 beams",
        "hf_512": "vs Hugging Face, 512 beams",
    }
    shown = {label: ratios[name] for name, label in names.items() if ratios.get(name)}
    axis = axes[0, 0]
    axis.barh(list(shown), list(shown.values()), color="#33658a")
    axis.set_xscale("log")
    axis.axvline(1, color="black", linewidth=1)
    for i, value in enumerate(shown.values()):
        axis.text(value, i, f" {value:.1f}x", va="center")
    axis.set_xlim(0.8, max(shown.values(), default=1) * 2)
    axis.invert_yaxis()
    axis.set_title("How many times faster")

    axis = axes[0, 1]
    default = rows["default"]
    shared = int(default["label"].split("K = ")[1].split(",")[0])
    sweep = {int(n[1:]): r for n, r in rows.items() if n[0] == "k" and n[1:].isdigit() and "qps" in r}
    sweep[shared] = default
    ks = sorted(sweep)
    # A short run has no sweep: a line between two points would invent one.
    style = "o-" if len(ks) > 2 else "o"
    axis.plot(ks, [sweep[k]["qps"]["median"] for k in ks], style, color="#33658a")
    axis.plot([shared], [default["qps"]["median"]], "o", markersize=12, fillstyle="none", color="#f26419")
    axis.set_xlabel("K, layers that see no token")
    axis.set_ylabel("requests a second")
    axis.set_ylim(0)
    axis.set_title("LazyAR: shared layers")

    axis = axes[1, 0]
    sizes = {"10 k": "ads_10 k", "100 k": "default", "1 M": "ads_1 M", "10 M": "ads_10 M"}
    values = [rows[n].get("latency_ms", {}).get("median", 0) for n in sizes.values()]
    axis.bar(list(sizes), values, color="#33658a")
    axis.set_xlabel("ads in the catalogue")
    axis.set_ylabel("latency, ms")
    axis.set_title("Catalogue size")

    axis = axes[1, 1]
    through = results["triton"]["rows"]
    points = [(r["concurrency"], r["qps"], r["latency_ms"]["median"]) for r in through if r.get("qps")]
    if points:
        concurrency, qps, latency = zip(*points, strict=True)
        axis.plot(concurrency, qps, "o-", color="#33658a", label="requests a second")
        axis.axhline(results["triton"]["in_process_qps"], color="#33658a", linestyle=":", label="in process")
        axis.set_ylim(0)
        other = axis.twinx()
        other.plot(concurrency, latency, "s--", color="#f26419", label="latency, ms")
        other.set_ylim(0)
        other.set_ylabel("latency, ms")
        lines = [*axis.get_legend_handles_labels()[0], *other.get_legend_handles_labels()[0]]
        axis.legend(lines, [str(line.get_label()) for line in lines], loc="lower right")
    axis.set_xlabel("requests under way")
    axis.set_ylabel("requests a second")
    axis.set_title("Through Triton, one core")
    environment = results["environment"]
    figure.suptitle(f"{results['widths']}, {environment['cpu']}, {results['threads']} thread", fontsize=10)
    figure.savefig(path, dpi=110)
    plt.close(figure)
