"""Files of tests that are slow as a whole: they take long and seldom find anything.

What a file marks as slow itself is not taken from here.
"""

PROCESSES = "starts a process each time, for seconds: about the commands, not about the kernels"
CLOSED = "each type, shape and layout of what stands in for a closed library"
COMPILES = "each compiles a kernel or more; KINDS has the ways to keep a row in pairs"
MODELS = "each traces, swaps or exports a model, or compiles a kernel for a tensor"

# The files, as tests/ has them, and why.
TURNS: dict[str, str] = {
    **dict.fromkeys(
        [
            "interop/test_dask.py",
            "project/test_bench.py",
            "project/test_bench_times.py",
            "project/test_examples.py",
            "project/test_hardware_kit.py",
            "project/test_main.py",
            "project/test_tune.py",
            "project/test_typing.py",
            "simgpu/test_children.py",
            "simgpu/test_command.py",
            "simgpu/test_plugin.py",
            "simgpu/test_profile_command.py",
        ],
        PROCESSES,
    ),
    **dict.fromkeys(
        [
            "simgpu/test_refusals.py",
            "simgpu/test_stand_ins_cub.py",
            "simgpu/test_stand_ins_fourier.py",
            "simgpu/test_stand_ins_linalg.py",
            "simgpu/test_stand_ins_products.py",
            "simgpu/test_stand_ins_random.py",
            "simgpu/test_stand_ins_sorts.py",
            "simgpu/test_stand_ins_sparse.py",
        ],
        CLOSED,
    ),
    **dict.fromkeys(
        [
            "benchmarks/test_kernel_counters.py",
            "interop/test_interop.py",
            "interop/test_quant_tensors.py",
            "ops/test_add_norm.py",
            "ops/test_addend_backward.py",
            "ops/test_backward.py",
            "ops/test_backward_calls.py",
            "ops/test_backward_gradients.py",
            "ops/test_backward_sums.py",
            "ops/test_calls.py",
            "ops/test_gated.py",
            "ops/test_gated_backward.py",
            "ops/test_given_sums.py",
            "ops/test_layer_norm.py",
            "ops/test_layouts.py",
            "ops/test_modulated.py",
            "ops/test_modulated_backward.py",
            "ops/test_post_norm.py",
            "ops/test_properties.py",
            "ops/test_quant.py",
            "ops/test_range.py",
            "ops/test_rms_norm.py",
            "ops/test_rope.py",
            "ops/test_rope_backward.py",
            "ops/test_tree.py",
            "ops/test_warm_up.py",
            "simgpu/test_cooperative.py",
            "simgpu/test_ordinary_filters.py",
            "simgpu/test_ordinary_triangles.py",
            "simgpu/test_ordinary_warps.py",
            "simgpu/test_register_limits.py",
        ],
        COMPILES,
    ),
    **dict.fromkeys(
        [
            "torch/test_gated_norms.py",
            "torch/test_swapped_attentions.py",
            "torch/test_swapped_export.py",
            "torch/test_swapped_norms.py",
            "torch/test_swapped_training.py",
            "torch/test_torch_cpu.py",
            "torch/test_torch_fused.py",
            "torch/test_torch_quant.py",
            "torch/test_torch_rope.py",
        ],
        MODELS,
    ),
    "simgpu/test_ordinary_ufuncs.py": "each of CuPy's ufuncs in each dtype",
}
