"""What is read in compiled programs."""

from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax import lax

import lossopt as lo
from lossopt.parallel import _hlo

TEXT = """\
HloModule jit_step, is_scheduled=true, num_partitions=8

%add (x: f32[], y: f32[]) -> f32[] {
  %x = f32[] parameter(0)
  %y = f32[] parameter(1)
  ROOT %sum = f32[] add(%x, %y)
}

%wrapped (p: bf16[64,4]) -> bf16[8,4] {
  %p = bf16[64,4]{1,0:T(8,128)(2,1)} parameter(0)
  ROOT %scatter = bf16[8,4]{1,0} reduce-scatter(%p), replica_groups={}, \
dimensions={0}, to_apply=%add
}

%inner (i: (s32[], f8e4m3fn[16])) -> (s32[], f8e4m3fn[16]) {
  %i = (s32[], f8e4m3fn[16]{0}) parameter(0)
  %part = f8e4m3fn[16]{0} get-tuple-element(%i), index=1
  %sent = f8e4m3fn[16]{0} collective-permute(%part), source_target_pairs={{0,1},{1,0}}
  ROOT %out = (s32[], f8e4m3fn[16]{0}) tuple(%i, %sent)
}

%outer (o: (s32[], f8e4m3fn[16])) -> (s32[], f8e4m3fn[16]) {
  %o = (s32[], f8e4m3fn[16]{0}) parameter(0)
  ROOT %w = (s32[], /*index=1*/f8e4m3fn[16]{0}) while(%o), condition=%c, body=%inner, \
backend_config={"known_trip_count":{"n":"3"},"known_init_step":{"init":"0","step":"1"}}
}

%c (q: (s32[], f8e4m3fn[16])) -> pred[] {
  %q = (s32[], f8e4m3fn[16]{0}) parameter(0)
  ROOT %yes = pred[] constant(true)
}

%dead (d: f32[2]) -> f32[2] {
  %d = f32[2]{0} parameter(0)
  ROOT %never = f32[2]{0} all-reduce(%d), replica_groups={}, to_apply=%add
}

ENTRY %main (a: f32[2,3], b: f32[4], c: s32[], t: (s32[], f8e4m3fn[16]), g: bf16[64,4]) -> f32[4] {
  %a = f32[2,3]{1,0} parameter(0)
  %b = f32[4]{0} parameter(1)
  %c = s32[] parameter(2)
  %t = (s32[], f8e4m3fn[16]{0}) parameter(3)
  %g = bf16[64,4]{1,0} parameter(4)
  %all = (f32[2,3]{1,0}, f32[4]{0}, s32[]) all-reduce(%a, %b, %c), \
replica_groups={{0,1,2,3},{4,5,6,7}}, to_apply=%add, metadata={op_name="jit(f)/(psum:while)"}
  %begun = ((f32[2,3]{1,0}, f32[4]{0}), (f32[4,3]{1,0}, f32[8]{0})) all-gather-start(%a, %b), \
replica_groups=[4,2]<=[8], dimensions={0}
  %done = (f32[4,3]{1,0}, f32[8]{0}) all-gather-done(%begun)
  %started = f32[4]{0} all-reduce-start(%b), \
replica_groups=mesh['data'=2,'fsdp'=4], device_ids=([2,4]T(1,0)) {'data','fsdp':(2)2}, to_apply=%add
  %ready = f32[4]{0} all-reduce-done(%started)
  %loops = (s32[], f8e4m3fn[16]{0}) while(%t), condition=%c, body=%outer, \
backend_config={"known_trip_count":{"n":"5"}}
  %nobody = (s32[], f8e4m3fn[16]{0}) while(%t), condition=%c, body=%inner
  %async = ((bf16[64,4]{1,0}), bf16[8,4]{1,0}) async-start(%g), calls=%wrapped
  %end = bf16[8,4]{1,0} async-done(%async), calls=%wrapped
  ROOT %back = f32[4]{0} copy(%b)
}
"""


def _told(collectives):
    return [(x.kind, x.shape, x.dtype, x.bytes, x.devices, x.times) for x in collectives]


def test_text_by_hand():
    """A tuple is as many as it has operands; loops multiply; the end of what began is none."""
    assert _told(lo.parallel.collectives(TEXT)) == [
        ("reduce-scatter", (64, 4), "bfloat16", 512, 8, 1),
        ("collective-permute", (16,), "float8_e4m3fn", 16, 8, 3 * 5 + 1),
        ("all-reduce", (2, 3), "float32", 24, 4, 1),
        ("all-reduce", (4,), "float32", 16, 4, 1),
        ("all-reduce", (), "int32", 4, 4, 1),
        ("all-gather", (4, 3), "float32", 48, 2, 1),
        ("all-gather", (8,), "float32", 32, 2, 1),
        ("all-reduce", (4,), "float32", 16, 4, 1),
    ]


def test_what_a_ring_moves():
    moved = {(x.kind, x.bytes): x.moved for x in lo.parallel.collectives(TEXT)}
    assert moved["reduce-scatter", 512] == 512 * 7 // 8
    assert moved["collective-permute", 16] == 16 * 16
    assert moved["all-reduce", 24] == 24 * 2 * 3 // 4
    assert moved["all-gather", 48] == 48 // 2


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [("pred[2]", "bool"), ("bf16[2]", "bfloat16"), ("u8[2]", "uint8"), ("c64[2]", "complex64")],
)
def test_dtypes(kind, dtype):
    assert _hlo.arrays(f"({kind}, token[])") == (((2,), dtype),)


def test_a_dtype_that_nobody_knows():
    with pytest.raises(ValueError, match="got 'q7'"):
        _hlo.arrays("q7[2]")


def test_of_a_program():
    mesh = jax.make_mesh((2, 4), ("data", "fsdp"), (jax.sharding.AxisType.Auto,) * 2)

    def body(x):
        def turn(i, x):
            whole = lax.all_gather(x, "fsdp", tiled=True)
            return x + lax.psum_scatter(whole * 2, "fsdp", tiled=True)

        x = lax.fori_loop(0, 3, turn, x)
        x = lax.all_to_all(x.reshape(2, 4), "data", 0, 0).reshape(8)
        return lax.ppermute(x, "fsdp", [(0, 1), (1, 0)]), lax.psum((x[0], x), ("data", "fsdp"))

    lies = jax.P(("data", "fsdp"))
    mapped = jax.shard_map(body, mesh=mesh, in_specs=lies, out_specs=(lies, jax.P()))
    program = jax.jit(mapped).lower(jnp.zeros(64)).compile()
    sums = {}
    for x in lo.parallel.collectives(program):
        key = x.kind, x.dtype, x.devices, x.times
        sums[key] = sums.get(key, 0) + x.bytes
    assert sums == {
        ("all-gather", "float32", 4, 3): 4 * 32,
        ("reduce-scatter", "float32", 4, 3): 4 * 32,
        ("all-to-all", "float32", 2, 1): 4 * 8,
        ("collective-permute", "float32", 8, 1): 4 * 8,
        ("all-reduce", "float32", 8, 1): 4 * (1 + 8),
    }


def _products(fn, *shapes):
    shapes = [jax.ShapeDtypeStruct(shape, "float32") for shape in shapes]
    text: Any = jax.jit(fn).lower(*shapes).compile().as_text()
    return _hlo.products(text)


class TestProducts:
    def test_in_a_loop_and_batched(self):
        def fn(x, w):
            x = lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, w)[0]
            return jnp.einsum("rj,kj->rk", x, x)

        assert _products(fn, (8, 32), (5, 32, 32)) == 2 * (5 * 8 * 32 * 32 + 8 * 8 * 32)

    def test_of_convolutions_in_groups(self):
        fn = lambda x, k: lax.conv_general_dilated(
            x, k, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=2
        )
        assert _products(fn, (2, 8, 8, 4), (3, 3, 2, 6)) == 2 * (2 * 8 * 8 * 6) * (3 * 3 * 2)

    def test_that_a_library_computes(self):
        line = (
            "%y = (f32[8,4]{1,0}, s8[64]{0}) custom-call(%x, %x), custom_call_target="
            '"__cublas$gemm", backend_config={"gemm_backend_config":{"dot_dimension_numbers":'
            '{"lhs_contracting_dimensions":["1"],"rhs_contracting_dimensions":["0"]}}}'
        )
        text = "\n".join(
            [
                "ENTRY %main (x: f32[8,32]) -> f32[8,4] {",
                "  %x = f32[8,32]{1,0} parameter(0)",
                f"  {line}",
                '  %other = f32[8]{0} custom-call(%x), custom_call_target="lapack"',
            ]
        )
        assert _hlo.products(text) == 2 * 8 * 4 * 32
