# cython: language_level=3, freethreading_compatible=False
"""The compiled core: kernels, the forward pass and the sampler.

The binding owns, checks and converts; it computes nothing.  Every shape, type and length is checked
here against the model's config, because nothing behind this border checks again.  Buffers are not
copied: a Model keeps a hold on each of them (a read-only mmap stays mapped) as long as it lives.
The parts are included, not modules: one extension, one border.
"""

import operator
import os

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from libc.math cimport isfinite, sqrt
from libc.stdint cimport int8_t, int32_t, uint8_t, uint16_t, uint32_t, uint64_t, uintptr_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memset

from engine cimport *

include "kernels.pxi"
include "config.pxi"
include "tensors.pxi"
include "model.pxi"
include "adapter.pxi"
include "session.pxi"
include "sampler.pxi"
