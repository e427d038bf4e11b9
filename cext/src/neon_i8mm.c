/* neon_i8mm.c - SMMLA where one code meets several tokens (Armv8.6: Cortex-A510, A710, X2, Neoverse
 * V1 and later).  One token alone has no use for it. */
#include "neon.h"
#if defined(__aarch64__)

const tern_kernels tern_neon_i8mm = {
    .name = "neon_i8mm",
    .needs = TERN_CPU_NEON | TERN_CPU_DOTPROD | TERN_CPU_I8MM,
    .gemv_rows = { gemv_rows_neon_dotprod, gemv_rows_base3_neon_dotprod },
    .gemv_cols = gemv_cols_neon_dotprod,
    .gemv_tiles = gemv_tiles_neon_dotprod,
    .gemv_channels = gemv_channels_neon_dotprod,
    .gemm_rows = { gemm_rows_2bit_neon_dotprod, gemm_rows_base3_neon_dotprod },
    .gemm_cols = gemm_cols_neon_i8mm,
    .gemm_tiles = gemm_tiles_neon_i8mm,
    .gemm_channels = gemm_channels_neon_i8mm,
    .dot_f16 = dot_f16_neon,
    .dot_f32 = dot_f32_neon,
    .mix_f32 = mix_f32_neon,
    .kv = &tern_kv_neon,
    .scan = head_scan_neon_dotprod,
    .refine = head_refine_neon_dotprod,
};
#endif
