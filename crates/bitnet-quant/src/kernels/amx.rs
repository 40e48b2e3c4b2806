//! AMX beside AVX-512: prompts times tiles of three weights in five bits.
//!
//! A decoded step of a group, 16 rows times 4 columns, is a row of the second operand of `tdpbsud` as the instruction
//! wants it, and 16 tokens times 64 columns are the first operand as they lie in memory. So 16 steps meet 16 tokens in
//! one instruction, of exact 32-bit sums; two groups and two times 16 tokens take the eight tile registers.
//!
//! The instructions have no stable intrinsics, hence assembly. Everything that uses tile registers between two points is
//! one block of it, except that their shapes, once loaded, stay until they are released.

use std::arch::asm;
use std::arch::x86_64::{__cpuid, __cpuid_count, __m512i, _mm512_setzero_si512, _xgetbv};
use std::mem::MaybeUninit;
use std::sync::OnceLock;

use super::Kernels;
use super::avx512_vbmi::{self, Decoder, GROUPS, TILE_STEPS};
use crate::layout::tiles::{COLUMN_STEP, TILE_BYTES, TILE_COLS, TILE_ROWS};

/// Tokens of a tile register.
const TOKENS: usize = 16;
/// Steps of a tile register.
const STEPS: usize = 16;
/// Columns of activations that they meet, which are bytes of a row of a tile register.
const COLS: usize = STEPS * COLUMN_STEP;
/// Tiles that are decoded at a time: 24 KiB of codes, half of the first cache.
const DECODED_TILES: usize = 64;
/// Bytes from one step to the next in decoded codes, and from one token to the next in sums.
const PITCH: usize = TILE_ROWS * size_of::<i32>();

static KERNELS: Kernels = Kernels {
    variant: "avx512-amx",
    burst,
    burst_ops: 4 * 2 * (TOKENS * 16 * COLS) as u64,
    gemm_tiles_i8: Some(gemm_tiles_i8),
    ..avx512_vbmi::KERNELS
};

pub(super) fn detect() -> Option<&'static Kernels> {
    static USABLE: OnceLock<bool> = OnceLock::new();
    let usable = || avx512_vbmi::detect().is_some() && processor_has_tiles() && system_permits_tiles();
    USABLE.get_or_init(usable).then_some(&KERNELS)
}

/// AMX-TILE and AMX-INT8, and their state among what the system saves. For processors with AVX-512.
fn processor_has_tiles() -> bool {
    const TILE_AND_INT8: u32 = 1 << 24 | 1 << 25;
    const TILE_STATE: u64 = 1 << 17 | 1 << 18;
    // SAFETY: a processor whose AVX-512 is usable has both instructions.
    let enabled = || unsafe { _xgetbv(0) };
    __cpuid(0).eax >= 7
        && __cpuid_count(7, 0).edx & TILE_AND_INT8 == TILE_AND_INT8
        && enabled() & TILE_STATE == TILE_STATE
}

/// Asks for tile registers, which Linux gives to processes that do; their threads inherit the permission.
#[cfg(target_os = "linux")]
fn system_permits_tiles() -> bool {
    const ARCH_PRCTL: isize = 158;
    const REQUEST_PERMISSION: usize = 0x1023;
    const TILE_DATA: usize = 18;
    let mut result = ARCH_PRCTL;
    // SAFETY: the call takes two numbers and touches no memory of ours; it clobbers what is named.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") result,
            in("rdi") REQUEST_PERMISSION,
            in("rsi") TILE_DATA,
            lateout("rcx") _,
            lateout("r11") _,
            options(nostack),
        );
    }
    result == 0
}

#[cfg(not(target_os = "linux"))]
fn system_permits_tiles() -> bool {
    false
}

/// What `ldtilecfg` reads: the shape of each tile register.
#[repr(C, align(64))]
struct TileShapes {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

/// Eight whole registers.
static WHOLE: TileShapes = {
    let (mut row_bytes, mut rows) = ([0; 16], [0; 16]);
    let mut i = 0;
    while i < 8 {
        (row_bytes[i], rows[i]) = (COLS as u16, TOKENS as u8);
        i += 1;
    }
    TileShapes { palette: 1, start_row: 0, reserved: [0; 14], row_bytes, rows }
};

#[inline]
fn shape_tiles() {
    // SAFETY: the table exists only where the instruction does, and the shapes are valid.
    unsafe { asm!("ldtilecfg [{}]", in(reg) &WHOLE, options(nostack, preserves_flags)) };
}

#[inline]
fn release_tiles() {
    // SAFETY: as above.
    unsafe { asm!("tilerelease", options(nostack, preserves_flags)) };
}

/// [`Kernels::burst`]: four registers of sums, of which none waits for itself.
unsafe fn burst(steps: u64) -> i32 {
    let mut sums = [0i32; TOKENS * 16];
    shape_tiles();
    // SAFETY: registers only, but for a store of 16 rows of 64 bytes.
    unsafe {
        asm!(
            "tilezero tmm0", "tilezero tmm1", "tilezero tmm2", "tilezero tmm3",
            "tilezero tmm4", "tilezero tmm5", "tilezero tmm6", "tilezero tmm7",
            "test {steps}, {steps}",
            "jz 3f",
            "2:",
            "tdpbsud tmm0, tmm4, tmm6",
            "tdpbsud tmm1, tmm4, tmm7",
            "tdpbsud tmm2, tmm5, tmm6",
            "tdpbsud tmm3, tmm5, tmm7",
            "dec {steps}",
            "jnz 2b",
            "3:",
            "tilestored [{sums} + {pitch}], tmm0",
            steps = inout(reg) steps => _,
            sums = in(reg) sums.as_mut_ptr(),
            pitch = in(reg) COLS,
            options(nostack),
        );
    }
    release_tiles();
    sums[0]
}

/// 16 tokens from some column on, and the sums that they have.
#[derive(Clone, Copy)]
struct TokenTile {
    x: *const i8,
    sums: *mut i32,
}

/// Decoded steps of both groups, and how the activations lie that they meet.
struct Steps {
    decoded: *const [__m512i; GROUPS],
    /// Registers of steps, at least one.
    count: usize,
    /// Columns from where the last register but one begins to where the last one does; all others are [`COLS`] apart.
    last_cols: usize,
    /// Bytes from a token to the next.
    stride: usize,
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512vbmi")]
unsafe fn gemm_tiles_i8(band: &[u8], x: &[i8], stride: usize, n: usize, out: &mut [i32]) {
    if n < TOKENS || band.len() / TILE_BYTES * TILE_STEPS < STEPS {
        // SAFETY: the caller vouches for the same.
        return unsafe { avx512_vbmi::gemm_tiles_i8(band, x, stride, n, out) };
    }
    let decoder = Decoder::new();
    let mut buffer = [const { MaybeUninit::uninit() }; DECODED_TILES * TILE_STEPS];
    // The last 16 tokens are a tile even where the one before has some of them; sums that are not wanted a second time
    // have a place of their own.
    let rest = n % TOKENS;
    let mut last = [0i32; TOKENS * TILE_ROWS];
    out.fill(0);
    let (sums, last_sums) = (out.as_mut_ptr(), last.as_mut_ptr());
    shape_tiles();
    for (b, tiles) in band.chunks(DECODED_TILES * TILE_BYTES).enumerate() {
        let n_steps = tiles.len() / TILE_BYTES * TILE_STEPS;
        // SAFETY: whole tiles, of which the buffer holds as many.
        unsafe { decoder.decode(tiles, &mut buffer) };
        // The last 16 steps are a register likewise; those that the one before has weigh nothing the second time.
        let whole = n_steps / STEPS * STEPS;
        let partial = n_steps - whole;
        if partial > 0 {
            buffer.copy_within(whole..n_steps, whole + STEPS - partial);
            buffer[whole..whole + STEPS - partial].fill(MaybeUninit::new([_mm512_setzero_si512(); GROUPS]));
        }
        let steps = Steps {
            decoded: buffer.as_ptr().cast(),
            count: n_steps.div_ceil(STEPS),
            last_cols: if partial > 0 { partial * COLUMN_STEP } else { COLS },
            stride,
        };
        // Steps that are less than a register meet columns of those before as well.
        let first_col = b * DECODED_TILES * TILE_COLS - STEPS.saturating_sub(n_steps) * COLUMN_STEP;
        let tile = |t: usize| {
            let token = (t * TOKENS).min(n - TOKENS);
            // SAFETY: there are 16 tokens from this one on, and as many rows of sums in either place.
            let sums = if token == t * TOKENS { unsafe { sums.add(token * TILE_ROWS) } } else { last_sums };
            TokenTile { x: x[token * stride + first_col..].as_ptr(), sums }
        };
        let count = n.div_ceil(TOKENS);
        for t in (0..count).step_by(2) {
            // SAFETY: the tokens have the columns of every step.
            unsafe {
                if t + 1 < count {
                    two_tiles(&steps, tile(t), tile(t + 1));
                } else {
                    one_tile(&steps, tile(t));
                }
            }
        }
    }
    release_tiles();
    out[(n - rest) * TILE_ROWS..].copy_from_slice(&last[(TOKENS - rest) * TILE_ROWS..]);
}

/// Adds the products of 32 tokens to their sums.
#[inline]
unsafe fn two_tiles(steps: &Steps, first: TokenTile, second: TokenTile) {
    // SAFETY: the caller vouches for the columns, the steps and the sums, and has shaped the tiles.
    unsafe {
        asm!(
            "tileloadd tmm0, [{sums0} + {pitch}]",
            "tileloadd tmm1, [{sums0} + {pitch} + 64]",
            "tileloadd tmm2, [{sums1} + {pitch}]",
            "tileloadd tmm3, [{sums1} + {pitch} + 64]",
            "2:",
            "tileloadd tmm4, [{x0} + {stride}]",
            "tileloadd tmm6, [{w} + {pitch}]",
            "tileloadd tmm7, [{w} + {pitch} + 64]",
            "tdpbsud tmm0, tmm4, tmm6",
            "tileloadd tmm5, [{x1} + {stride}]",
            "tdpbsud tmm1, tmm4, tmm7",
            "tdpbsud tmm2, tmm5, tmm6",
            "tdpbsud tmm3, tmm5, tmm7",
            "cmp {count}, 2",
            "cmove {cols}, {last_cols}",
            "add {x0}, {cols}",
            "add {x1}, {cols}",
            "add {w}, {register}",
            "dec {count}",
            "jnz 2b",
            "tilestored [{sums0} + {pitch}], tmm0",
            "tilestored [{sums0} + {pitch} + 64], tmm1",
            "tilestored [{sums1} + {pitch}], tmm2",
            "tilestored [{sums1} + {pitch} + 64], tmm3",
            x0 = inout(reg) first.x => _,
            x1 = inout(reg) second.x => _,
            w = inout(reg) steps.decoded => _,
            count = inout(reg) steps.count => _,
            cols = inout(reg) COLS => _,
            last_cols = in(reg) steps.last_cols,
            stride = in(reg) steps.stride,
            pitch = in(reg) PITCH,
            register = const STEPS * PITCH,
            sums0 = in(reg) first.sums,
            sums1 = in(reg) second.sums,
            options(nostack),
        );
    }
}

/// The same of 16 tokens.
#[inline]
unsafe fn one_tile(steps: &Steps, tile: TokenTile) {
    // SAFETY: as above.
    unsafe {
        asm!(
            "tileloadd tmm0, [{sums} + {pitch}]",
            "tileloadd tmm1, [{sums} + {pitch} + 64]",
            "2:",
            "tileloadd tmm4, [{x} + {stride}]",
            "tileloadd tmm6, [{w} + {pitch}]",
            "tileloadd tmm7, [{w} + {pitch} + 64]",
            "tdpbsud tmm0, tmm4, tmm6",
            "tdpbsud tmm1, tmm4, tmm7",
            "cmp {count}, 2",
            "cmove {cols}, {last_cols}",
            "add {x}, {cols}",
            "add {w}, {register}",
            "dec {count}",
            "jnz 2b",
            "tilestored [{sums} + {pitch}], tmm0",
            "tilestored [{sums} + {pitch} + 64], tmm1",
            x = inout(reg) tile.x => _,
            w = inout(reg) steps.decoded => _,
            count = inout(reg) steps.count => _,
            cols = inout(reg) COLS => _,
            last_cols = in(reg) steps.last_cols,
            stride = in(reg) steps.stride,
            pitch = in(reg) PITCH,
            register = const STEPS * PITCH,
            sums = in(reg) tile.sums,
            options(nostack),
        );
    }
}
