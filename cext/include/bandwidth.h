/* bandwidth.h - how fast this machine reads memory: the roofline beside every figure of the bench. */
#ifndef BANDWIDTH_H
#define BANDWIDTH_H

#include <stddef.h>
#include <stdint.h>

/* Read all of `bytes` once; every thread reads one contiguous share, as the kernels do.
 *
 *   fold     xor of all 64-bit words (a last partial one padded with 0): proof of the reading
 *   returns  seconds from the first thread's start to the last one's end; 0 when memory or threads
 *            are lacking */
double tern_read_seconds(const uint8_t *bytes, size_t n_bytes, size_t n_threads, uint64_t *fold);

#endif
