"""What normalising levels over live children costs and gives, level by level: `make ablate-live`.

A trained model, its exported graphs in this process, the same test requests for every variant, variants
interleaved in random order request by request.
"""

from __future__ import annotations

from benchmarks.trained_demo import TrainedDemo, compare, options, write_report
from serving.search.normalise import Normalise


def variants(levels: int) -> dict[str, tuple[Normalise, ...]]:
    """Codebook throughout, each level alone, and each suffix of levels."""
    found: dict[str, tuple[Normalise, ...]] = {}
    for chosen in [set(), *({t} for t in range(levels)), *(set(range(t, levels)) for t in range(levels))]:
        normalise: tuple[Normalise, ...] = tuple("live" if t in chosen else "codebook" for t in range(levels))
        found["-".join(normalise)] = normalise
    return found


def main() -> None:
    """Command line."""
    arguments = options(__doc__).parse_args()
    demo = TrainedDemo.load(arguments, graphs="live_levels")
    compared = variants(len(demo.plan.sid))
    plain = "-".join(["codebook"] * len(demo.plan.sid))
    _, rows = compare(demo, {name: {"normalise": n} for name, n in compared.items()}, plain=plain)
    print(f"{'normalise':28} {'ms':>6} {'speed':>6} {'recall@10':>10} {'recall@50':>10} {'cold@50':>9}")
    for name, row in rows.items():
        print(
            f"{name:28} {row['latency_ms_median']:6.1f} {row['speed_ratio']:5.2f}x {row['recall10']:10.4f} "
            f"{row['recall50']:10.4f} {row['cold_recall50']:9.4f}   recall@50 difference, 95 %: "
            f"{row['recall50_difference_95'][0]:+.4f} .. {row['recall50_difference_95'][1]:+.4f}"
        )
    write_report(arguments.run / "live_levels.json", demo, rows)


if __name__ == "__main__":
    main()
