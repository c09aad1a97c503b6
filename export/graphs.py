"""ONNX graphs of the split generator: `prefix.onnx` and one `tail_<level>.onnx` a later level.

Letters: B requests, n beams, C children, S slots, T SID levels, P columns of profile and request, d width.
"""

from __future__ import annotations

import logging
import warnings
from pathlib import Path

import onnx
import torch
from torch.export import Dim

from export.skeleton import fill, mark, random_twin
from serving.search.executor import (
    prefix_inputs,
    prefix_outputs,
    tail_carry_inputs,
    tail_outputs,
    tail_parent_inputs,
)
from training.model.gr4ad import Generator
from training.model.split import split

OPSET = 20


def export_graphs(model: Generator, folder: Path) -> list[Path]:
    """Write every graph of a model; dynamic in B, n, C. Returns the files.

    A twin with random weights is traced and filled with the model's, see `export.skeleton`.
    """
    traced, graphs = split(random_twin(model)), split(model)
    files = [folder / "prefix.onnx", *(folder / f"tail_{t}.onnx" for t in range(2, model.levels + 2))]
    _export_prefix(traced["prefix"], files[0], model=model)
    for level, file in zip(range(2, model.levels + 2), files[1:], strict=True):
        _export_tail(traced[f"tail_{level}"], file, model=model, level=level)
    for file in files:
        graph = onnx.load(str(file))
        mark(graph.graph, traced[file.stem].state_dict())
        fill(graph.graph, graphs[file.stem].state_dict())
        onnx.checker.check_model(graph)
        onnx.save(graph, str(file))
    return files


def example_request(
    model: Generator, *, batch: int, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Random slots and habits int32 [B, S + H, T + 3], and profile int32 [B, P], all within range.

    The last rows of both are empty.
    """
    spec = model.spec
    sizes = [s + 1 for s in model.level_sizes] + [4, spec.gap_buckets, spec.count_buckets]
    columns = [torch.randint(min(1, s - 1), s, (batch, spec.rows), generator=generator) for s in sizes]
    slots = torch.stack(columns, dim=-1).int()
    for first, rows in ((0, spec.slots), (spec.slots, spec.habits)):
        slots[:, first + rows - rows // 4 : first + rows] = 0
    profile = [torch.randint(0, s, (batch,), generator=generator) for s in spec.column_sizes]
    stacked = torch.stack(profile, dim=-1).int() if profile else torch.zeros(batch, 0, dtype=torch.int32)
    return slots, stacked


def _export_prefix(graph: torch.nn.Module, path: Path, *, model: Generator) -> None:
    slots, profile = example_request(model, batch=3, generator=torch.Generator().manual_seed(0))
    batch = Dim("batch", min=1, max=4096)
    inputs = list(prefix_inputs(slots.numpy(), profile.numpy()))
    export_graph(
        graph if "profile" in inputs else _WithoutColumns(graph),
        (slots, profile)[: len(inputs)],
        path,
        inputs=inputs,
        outputs=prefix_outputs(copy_path=model.copy_path is not None),
        dynamic=({0: batch}, {0: batch})[: len(inputs)],
    )


def _export_tail(graph: torch.nn.Module, path: Path, *, model: Generator, level: int) -> None:
    config, batch, n, children = model.config, 3, 5, 7
    width, context = config.width, model.context.slots
    # Every earlier level has its own number of beams: distinct sizes keep the exporter from tying them
    # together.
    beams = [1, *(11 + j for j in range(2, level))]
    past = [torch.zeros(batch, model.past_rows, b, width) for b in beams]
    parents = [torch.zeros(batch, n, dtype=torch.int32) for _ in range(2, level)]
    example = (
        torch.zeros(batch, model.levels + 1, width),
        torch.zeros(batch, model.tail_kv_groups, 2, config.heads, context, width // config.heads),
        torch.zeros(batch, context),
        past,
        parents,
        torch.zeros(batch, n, dtype=torch.int32),
        torch.zeros(batch, n, children, dtype=torch.int32),
    )
    b, dim_n, c = (
        Dim("batch", min=1, max=4096),
        Dim("beams", min=1, max=65536),
        Dim("children", min=1, max=65536),
    )
    dynamic = (
        {0: b},
        {0: b},
        {0: b},
        [{0: b}, *({0: b, 2: Dim(f"beams_{j}", min=1, max=65536)} for j in range(2, level))],
        [{0: b, 1: dim_n} for _ in parents],
        {0: b, 1: dim_n},
        {0: b, 1: dim_n, 2: c},
    )
    inputs = [*tail_carry_inputs(level), *tail_parent_inputs(level), "token", "allowed"]
    last = level == model.levels + 1
    module = _FirstOutput(graph) if last else graph
    export_graph(
        module, example, path, inputs=inputs, outputs=tail_outputs(level, last=last), dynamic=dynamic
    )


def _name_dimensions(graph: onnx.GraphProto, dynamic: tuple) -> None:
    """Give dynamic dimensions the names they were asked for; the exporter calls some of them s11."""
    flat = [axes for part in dynamic for axes in (part if isinstance(part, list) else [part])]
    names: dict[str, str] = {}
    for value, axes in zip(graph.input, flat, strict=True):
        dims = value.type.tensor_type.shape.dim
        names |= {dims[axis].dim_param: dim.__name__ for axis, dim in axes.items()}
    for value in (*graph.input, *graph.output):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param:
                dim.dim_param = names[dim.dim_param]
    del graph.value_info[:]  # they speak of the old names


class _WithoutColumns(torch.nn.Module):
    """The prefix of a model without a column, see `serving.search.executor.prefix_inputs`."""

    def __init__(self, module: torch.nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, slots: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return self.module(slots, slots.new_zeros((slots.shape[0], 0)))


class _FirstOutput(torch.nn.Module):
    """The last tail hands nothing on."""

    def __init__(self, module: torch.nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(
        self,
        m: torch.Tensor,
        context_kv: torch.Tensor,
        context_bias: torch.Tensor,
        past_kv: list[torch.Tensor],
        parents: list[torch.Tensor],
        token: torch.Tensor,
        allowed: torch.Tensor,
    ) -> torch.Tensor:
        return self.module(
            m=m,
            context_kv=context_kv,
            context_bias=context_bias,
            past_kv=past_kv,
            parents=parents,
            token=token,
            allowed=allowed,
        )[0]


def export_graph(
    module: torch.nn.Module,
    example: tuple,
    path: Path,
    *,
    inputs: list[str],
    outputs: list[str],
    dynamic: tuple,
) -> None:
    """Write one graph.

    Args:
        module: what it computes.
        example: inputs, of other sizes than 1 wherever a dimension is dynamic.
        path: file.
        inputs: names.
        outputs: names.
        dynamic: dimensions of each input, by axis.
    """
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings(), torch.no_grad():
        # The exporter's notes on opsets and guards say little; the parity check is what counts.
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            module.eval(),
            example,
            dynamo=True,
            opset_version=OPSET,
            input_names=inputs,
            output_names=outputs,
            dynamic_shapes=dynamic,
            verbose=False,
        )
    assert program is not None
    program.save(str(path), external_data=False)
    graph = onnx.load(str(path))
    _name_dimensions(graph.graph, dynamic)
    onnx.save(graph, str(path))
    names = [i.name for i in graph.graph.input], [o.name for o in graph.graph.output]
    if names != (inputs, outputs):
        raise RuntimeError(
            f"{path.name}: expected inputs and outputs {(inputs, outputs)}, the exporter made {names}"
        )
