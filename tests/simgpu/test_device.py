import pytest

from cunorm.simgpu.device import tables as device

KIB = 1024


@pytest.mark.parametrize(
    ("arch", "opt_in", "per_multiprocessor", "threads"),
    # From the CUDA programming guide, "Technical Specifications per Compute Capability".
    [
        (75, 64, 64, 1024),
        (80, 163, 164, 2048),
        (86, 99, 100, 1536),
        (87, 163, 164, 1536),
        (89, 99, 100, 1536),
        (90, 227, 228, 2048),
        (100, 227, 228, 2048),
        (103, 227, 228, 2048),
        (120, 99, 100, 1536),
        (121, 99, 100, 1536),
    ],
)
def test_limits_are_those_of_the_programming_guide(arch, opt_in, per_multiprocessor, threads):
    made = device.make(arch)
    assert (made.major, made.minor) == (arch // 10, arch % 10)
    assert made.shared_per_block_opt_in == opt_in * KIB
    assert made.shared_per_multiprocessor == per_multiprocessor * KIB
    assert made.threads_per_multiprocessor == threads


def test_an_architecture_that_is_not_in_the_table_is_refused_by_name():
    with pytest.raises(ValueError, match=r"75, 80, 86, 87, 89, 90, 100, 103, 120, 121, not 70"):
        device.make(70)


@pytest.mark.parametrize("arch", device.ARCHITECTURES)
def test_attributes_and_properties_agree(arch):
    made = device.make(arch, ordinal=3, memory_bytes=1 << 30)
    attributes, properties = device.attributes(made), device.properties(made)
    pairs = {
        "maxThreadsPerBlock": 1,
        "sharedMemPerBlock": 8,
        "warpSize": 10,
        "regsPerBlock": 12,
        "multiProcessorCount": 16,
        "l2CacheSize": 38,
        "maxThreadsPerMultiProcessor": 39,
        "major": 75,
        "minor": 76,
        "integrated": 18,
        "sharedMemPerMultiprocessor": 81,
        "sharedMemPerBlockOptin": 97,
        "maxBlocksPerMultiProcessor": 106,
        "reservedSharedMemPerBlock": 111,
        "pciBusID": 33,
    }
    assert {key: properties[key] for key in pairs} == {
        key: attributes[number] for key, number in pairs.items()
    }
    assert properties["totalGlobalMem"] == 1 << 30
