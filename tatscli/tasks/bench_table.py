"""The table and the sentence that `tats bench` prints."""

from __future__ import annotations

from typing import Any

from tatscli.console import Reporter


def show_bench(found: dict[str, Any], reporter: Reporter) -> None:
    """Print a benchmark as a table and a sentence, or as JSON."""
    step, loader, batch = found["step"], found["loader"], found["batch"]
    rows: list[tuple[str, str]] = [
        ("device", f"{found['device_name']}, {found['precision']}, {found['threads']} threads"),
        ("GFLOP a clip, forward and backward", f"{step['gflops_per_clip']:.4g}"),
    ]
    search = batch["search"]
    if search is not None:
        room = "" if search["limit_gb"] is None else f" in {search['limit_gb']:.3g} GB"
        end = ", the total batch" if search["largest"] == search["most"] else ""
        rows.append(("largest batch", f"{search['largest']} videos{room}{end}"))
    if loader["skipped"] is None:
        made = f"{loader['clips_per_second']:.4g} clips/s, {loader['workers']} workers"
    else:
        made = f"not measured: {loader['skipped']}"
    rows.append(("loader alone", made))
    if step["clips_per_second"] is not None:
        rate = f"{step['clips_per_second']:.4g} clips/s with {batch['used']} videos"
        rows += [
            ("step alone", f"{rate}, {step['seconds']:.3g} s a step"),
            ("peak memory", f"{step['peak_memory_gb']:.3g} GB"),
            ("speed of the step", f"{step['tflops']:.4g} TFLOP/s"),
        ]
        if step["clips_per_second_at_largest"] is not None:
            faster = f"{step['clips_per_second_at_largest']:.4g} clips/s"
            rows.append((f"step with {search['usable']} videos", faster))
        if step["clips_per_second_in_bf16"] is not None:
            rows.append(("step in bf16", f"{step['clips_per_second_in_bf16']:.4g} clips/s"))
    rows.append(("large matrix product", f"{step['ceiling_tflops']:.4g} TFLOP/s"))
    if step["of_ceiling"] is not None:
        mfu = "unknown: this device is not in the table"
        if step["mfu"] is not None:
            mfu = f"{100 * step['mfu']:.1f} % of {step['peak_tflops']:.4g} TFLOP/s"
        rows += [("share of that", f"{100 * step['of_ceiling']:.1f} %"), ("MFU", mfu)]
    reporter.table(f"bench {found['stage']} {found['recipe']}", ["what", "value"], rows)
    if not reporter.json_output:
        reporter.stdout.write(found["bottleneck"]["sentence"] + "\n")
    reporter.result(found)
