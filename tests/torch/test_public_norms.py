"""Norms as public projects write them: swapped with the same bits, or left with the reason.

The bits are compared on rows whose statistics every spelling has alike: of whole numbers that come
with both signs, so that no sum of squares is rounded, and of those rows the ones whose mean is 0
and whose rstd is the op's. The parameters let a product or a sum be exact, so that a multiply-add
has the bits of its parts. So what differs then differs in a rounding. The page docs/models.md is
written from the same; ``PYTHONPATH=tests python tests/torch/test_public_norms.py`` writes it anew.
"""

import copy
import functools
from pathlib import Path

import numpy as np
import pytest
import torch
from norm_modules import same_bits
from public_norms import CLASSES

from cunorm.torch import replace_norms
from cunorm.torch._known import known

PAGE = Path(__file__).parents[2] / "docs" / "models.md"
NARROW = (torch.float32, torch.bfloat16, torch.float16)
PAIRS = [(x, w) for w in NARROW for x in NARROW]
COLUMNS = 24

HEAD = """\
# Norms of public models

What `cunorm.torch.replace_norms` makes of norms as public projects write them: each is swapped with
the same bits, or left as it was, with the reason that the report gives. The classes are written
anew from the projects' definitions in [`tests/public_norms.py`](../tests/public_norms.py).

*The same bits* are those of the class itself on the CPU, given the same statistics; of a LayerNorm
in 16 bits at least 99.8 % are compared equal, as PyTorch's kernel does not say its statistics.

*Fused* are the pairs of dtypes of x and the parameters, of float32, bfloat16 and float16, in which
the op computes the norm; in any other the class's own forward is called, with its own bits.
*Refused* are pairs that PyTorch's CPU kernel does not take: the op takes them.

"""


@functools.cache
def rows_with_one_statistic(eps, count=3000):
    """Return rows of whole numbers whose mean is 0, and whose rstd is one however it is written."""
    rng = np.random.default_rng(3)
    half = rng.integers(1, 121, (count, COLUMNS // 2))
    x = torch.from_numpy(rng.permuted(np.concatenate([half, -half], axis=1), axis=1)).float()
    shifted = x.pow(2).mean(-1) + torch.tensor(eps, dtype=torch.float32)
    _, mean, fused = torch.native_layer_norm(x, (COLUMNS,), None, None, eps)
    _, op_mean, op = torch.ops.cunorm.layer_norm_fwd(x, None, None, eps, 0.0, None, None, 1.0, None)
    spelt = (torch.rsqrt(shifted), 1 / torch.sqrt(shifted), torch.pow(shifted, -0.5))
    alike = torch.stack([other == op for other in (*spelt, fused.squeeze(-1))]).all(0)
    alike &= (mean.squeeze(-1) == 0) & (op_mean == 0)
    assert alike.sum() > 25
    return x[alike]


def fill(module, seed, exact):
    """Give weights and biases numbers; either no bias, or weights that are powers of two."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in module.state_dict().items():
        drawn = torch.randn(tensor.shape, generator=generator)
        if name in ("bias", "beta"):
            tensor.copy_(drawn if exact else torch.zeros_like(drawn))
        else:
            tensor.copy_(2.0 ** drawn.round() if exact else drawn)


def eps_of(module, found, dtype):
    plan = next(plan for key, plan in found.plans.items() if key[2] == dtype)
    return getattr(module, plan.eps) if isinstance(plan.eps, str) else plan.eps


def inputs(found, plan, x):
    """Return what a module is called with: x in its shape, and a gate where it takes one.

    The activation of that gate is a power of two, so that x times it is exact, and the rows that
    are normalised are the same.
    """
    if found.shape is not None and len(found.shape) > 1:
        heads = found.shape[0]
        x = x[: len(x) // heads * heads].unflatten(0, (-1, heads))
    if plan.gating is None:
        return (x,)
    gate = torch.full_like(x, 32.0)
    assert (torch.nn.functional.silu(gate.float()) == gate.float()).all()
    return (x / 32 if plan.gating["gate_first"] else x, gate)


def fused_and_refused(cls):
    """Return the pairs in which a class is fused, with the same bits, and those PyTorch refuses."""
    module = cls(COLUMNS)
    found = known(module)
    fused, refused = [], []
    for x_dtype, w_dtype in PAIRS if found.names else [(x, None) for x in NARROW]:
        key = ("cpu", None, x_dtype, *[w_dtype] * len(found.names))
        if key not in found.plans:
            continue
        x = rows_with_one_statistic(eps_of(module, found, x_dtype)).to(x_dtype)
        for exact in (False, True):
            theirs = cls(COLUMNS)
            fill(theirs, 5, exact)
            theirs = theirs if w_dtype is None else theirs.to(w_dtype)
            ours = copy.deepcopy(theirs)
            if not replace_norms(ours).swapped:  # it is not known for rows of the weight's dtype
                break
            given = inputs(found, found.plans[key], x)
            y = ours(*given)
            try:
                expected = theirs(*given)
            except RuntimeError:
                assert (x_dtype, w_dtype) in refused or not exact
                refused += [] if exact else [(x_dtype, w_dtype)]
                continue
            assert y.dtype == expected.dtype
            alike = (y == expected).double().mean()
            # PyTorch's kernel for 16-bit rows adds in another order, and gives no rstd to look at.
            plain = found.plans[key].centred and y.dtype != torch.float32
            assert alike >= 0.998 if plain else same_bits(y, expected), (cls, x_dtype, w_dtype)
        else:
            fused += [(x_dtype, w_dtype)] * ((x_dtype, w_dtype) not in refused)
    return fused, refused


def cell(pairs, of):
    names = {torch.float32: "f32", torch.bfloat16: "bf16", torch.float16: "f16", None: ""}
    if len(pairs) == of:
        return f"all {of}" if of else ""
    return ", ".join(f"{names[x]}·{names[w]}".rstrip("·") for x, w in pairs)


def line(cls):
    """Return the line of the page for a class."""
    module = cls(COLUMNS)
    done = replace_norms(module)
    project, _, way = cls.__doc__.partition(": ")
    if not done.swapped:
        reason = done.left[0].reason if done.left else known(module).reason
        return f"| `{cls.__name__}` | {project} | {way} | left: {reason} | |"
    fused, refused = fused_and_refused(cls)
    of = 9 if vars(module)["_cunorm_known"].names else 3
    said = f"swapped, fused: {cell(fused, of - len(refused))}"
    return f"| `{cls.__name__}` | {project} | {way} | {said} | {cell(refused, 0)} |"


def page():
    table = ["| class | project | written as | `replace_norms` | refused, x · weight |"]
    table.append("|---|---|---|---|---|")
    table += [line(cls) for cls in CLASSES]
    command = "PYTHONPATH=tests python tests/torch/test_public_norms.py   # writes this page"
    command = f"\n```bash\n{command}\n```\n"
    return HEAD + "\n".join(table) + "\n" + command


@pytest.mark.parametrize("cls", CLASSES)
def test_each_norm_is_swapped_with_the_same_bits_or_left_as_the_page_says(cls):
    assert line(cls) in PAGE.read_text("utf-8").splitlines()


def test_the_page_is_of_these_classes_and_30_of_them_are_swapped():
    text = PAGE.read_text("utf-8")
    assert text.startswith(HEAD)
    listed = [row.split("`")[1] for row in text.splitlines() if row.startswith("| `")]
    assert listed == [cls.__name__ for cls in CLASSES]
    assert text.count("| swapped, ") >= 30
    assert text.count("| left: ") >= 10


if __name__ == "__main__":
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(page(), "utf-8")
