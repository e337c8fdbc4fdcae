"""CUDA C into PTX for any architecture, whatever device the session runs on."""

import functools

from cupy._core.core import assemble_cupy_compiler_options
from cupy_backends.cuda.libs import nvrtc


@functools.cache
def ptx_of(source, arch=90):
    """Compile CUDA C with line information; CuPy names the folders of CUDA's headers."""
    options = assemble_cupy_compiler_options(())
    program = nvrtc.createProgram(source, "test.cu", (), ())
    try:
        nvrtc.compileProgram(program, (*options, f"--gpu-architecture=compute_{arch}", "-lineinfo"))
        text = nvrtc.getPTX(program)
    except nvrtc.NVRTCError as error:
        raise ValueError(nvrtc.getProgramLog(program)) from error
    finally:
        nvrtc.destroyProgram(program)
    return text if isinstance(text, str) else text.decode()
