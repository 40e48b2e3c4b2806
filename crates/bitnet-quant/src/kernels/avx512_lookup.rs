//! Prompts on AVX-512 with VBMI: of every seven tiles three are looked up while four are multiplied.
//!
//! Three activations times any three weights have one of 27 sums. They are computed once for each token and serve every
//! row: `vpermw` finds those of 32 rows by the fields of a tile, as they are packed, and `vpaddw` adds them up. That is
//! three columns for two instructions, which other execution units run than those that `vpdpbusd` keeps busy, so that
//! both together do more than either alone. 16 bits hold the sums of a block of columns exactly.

use std::arch::x86_64::*;
use std::array::from_fn;
use std::mem::MaybeUninit;
use std::sync::OnceLock;
use std::time::Instant;

use super::avx512_vbmi::{self, Decoder, GROUPS, broadcast};
use super::{BANDS_TOKENS, BandOutputs, BandTokens, Bands, Kernels, MAX_BANDS, TILE_BANDS, TILE_TOKENS};
use crate::layout::tiles::{COLUMN_STEP, GROUP_ROWS, TILE_BYTES, TILE_COLS, TILE_ROWS};

/// Bands and tokens of a register tile, whose sums take 18 of the 32 registers.
const BANDS: usize = TILE_BANDS;
const TOKENS: usize = TILE_TOKENS;
/// Steps that look up a tile, and that multiply one.
const LOOKUP_STEPS: usize = COLUMN_STEP;
const DOT_STEPS: usize = TILE_COLS / COLUMN_STEP;
/// Tiles of a block: decoded, they take 20 KiB of the first cache.
const BLOCK_TILES: usize = 21;
/// Steps of a block, of which each looks up three columns and multiplies four.
const BLOCK_STEPS: usize = dot_tiles(BLOCK_TILES) * DOT_STEPS;

/// No sum of looked-up columns leaves 16 bits: codes are at most 2, activations at least -128.
const _: () = assert!(BLOCK_STEPS * 3 * 2 * 128 <= i16::MAX as usize);

static KERNELS: Kernels =
    Kernels { variant: "avx512-lookup", bitlinear_bands: Some(bitlinear_bands), ..avx512_vbmi::KERNELS };

/// This table and the one without it, the faster last: processors differ in how many permutations they do at a time.
pub(super) fn detect() -> Option<[&'static Kernels; 2]> {
    static PAYS: OnceLock<bool> = OnceLock::new();
    let dots = avx512_vbmi::detect()?;
    Some(if *PAYS.get_or_init(|| pays(dots)) { [dots, &KERNELS] } else { [&KERNELS, dots] })
}

/// Whether products are faster with lookups than without: measured in some hundred microseconds, once.
fn pays(dots: &Kernels) -> bool {
    const REPEATS: usize = 5;
    /// Enough for tables to serve many rows, as those of a model do.
    const N_BANDS: usize = 12 * BANDS;
    const COLS: usize = BLOCK_TILES * TILE_COLS;
    let (band_bytes, rows) = (BLOCK_TILES * TILE_BYTES, N_BANDS * TILE_ROWS);
    let bands = Bands { codes: &vec![0; N_BANDS * band_bytes], band_bytes };
    let codes = vec![0; BANDS_TOKENS * COLS];
    let x =
        BandTokens { codes: &codes, stride: COLS, sums: &[0; BANDS_TOKENS], factors: &[1.0; BANDS_TOKENS] };
    let mut acc = vec![0; BANDS_TOKENS * TILE_ROWS];
    let mut out = vec![0.0; BANDS_TOKENS * rows];
    let fastest = |product: &mut dyn FnMut()| {
        let times = (0..REPEATS).map(|_| {
            let start = Instant::now();
            product();
            start.elapsed()
        });
        times.min()
    };
    let without = fastest(&mut || {
        for band in bands.codes.chunks_exact(band_bytes) {
            dots.gemm_tiles_i8(band, x.codes, COLS, BANDS_TOKENS, &mut acc);
        }
    });
    let with = fastest(&mut || {
        let out = BandOutputs { out: out.as_mut_ptr(), pitch: rows, rows };
        // SAFETY: there is an output for each row of each token.
        unsafe { KERNELS.bitlinear_bands(bands, x, out) };
    });
    with < without
}

/// Tiles of a block that are multiplied; looking up the others takes no more steps.
const fn dot_tiles(tiles: usize) -> usize {
    (LOOKUP_STEPS * tiles).div_ceil(LOOKUP_STEPS + DOT_STEPS)
}

/// What a step needs of the weights of a band.
struct Step {
    /// 32 fields, each in the low bits of a lane: those of the second group in the odd lanes.
    fields: __m512i,
    /// Codes of four columns of each row of both groups.
    codes: [__m512i; GROUPS],
}

/// The 27 sums that three activations can have, and those of the five values that fields do not take.
type Table = __m512i;

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512vbmi")]
unsafe fn bitlinear_bands(bands: Bands<'_>, x: BandTokens<'_>, out: BandOutputs) {
    let (decoder, tabulator) = (Decoder::new(), Tabulator::new());
    let mut tables = [const { MaybeUninit::<Table>::uninit() }; BANDS_TOKENS * BLOCK_STEPS];
    let mut sums = [const { MaybeUninit::<[i32; TILE_ROWS]>::uninit() }; MAX_BANDS * BANDS_TOKENS];
    let n_tiles = bands.band_bytes / TILE_BYTES;
    for first_tile in (0..n_tiles).step_by(BLOCK_TILES) {
        let tiles = BLOCK_TILES.min(n_tiles - first_tile);
        let dots = dot_tiles(tiles);
        let block = Block {
            x,
            first_tile,
            lookups: tiles - dots,
            steps: dots * DOT_STEPS,
            is_last: first_tile + tiles == n_tiles,
        };
        // SAFETY: there are as many tables and sums as tokens and bands can need; the caller vouches for the rest.
        unsafe {
            tabulator.write_tables(&block, &mut tables);
            let tables = tables.as_ptr().cast();
            for (g, group) in bands.codes.chunks(BANDS * bands.band_bytes).enumerate() {
                let group = Bands { codes: group, ..bands };
                let sums = sums.as_mut_ptr().add(g * BANDS * x.sums.len()).cast();
                let out = out.rows_from(g * BANDS * TILE_ROWS);
                match group.codes.len() / group.band_bytes {
                    1 => block.add_products::<1>(&decoder, group, tables, sums, out),
                    2 => block.add_products::<2>(&decoder, group, tables, sums, out),
                    _ => block.add_products::<BANDS>(&decoder, group, tables, sums, out),
                }
            }
        }
    }
}

/// Columns whose products are added up in registers, and the tokens that they are for.
struct Block<'a> {
    x: BandTokens<'a>,
    first_tile: usize,
    /// Tiles that are looked up; the multiplied ones follow.
    lookups: usize,
    steps: usize,
    is_last: bool,
}

impl Block<'_> {
    /// The activations of token `t` from the first column of the block on.
    unsafe fn token(&self, t: usize) -> *const i8 {
        // SAFETY: the caller vouches for the tokens, which have all columns.
        unsafe { self.x.codes.as_ptr().add(t * self.x.stride + self.first_tile * TILE_COLS) }
    }

    /// The products of `R` bands with all tokens.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512vbmi")]
    unsafe fn add_products<const R: usize>(
        &self,
        decoder: &Decoder,
        bands: Bands<'_>,
        tables: *const Table,
        sums: *mut i32,
        out: BandOutputs,
    ) {
        let mut steps = [const { MaybeUninit::<[Step; R]>::uninit() }; BLOCK_STEPS];
        for (r, band) in bands.codes.chunks_exact(bands.band_bytes).enumerate() {
            // SAFETY: the bands have the tiles of this block.
            unsafe { self.decode(decoder, &band[self.first_tile * TILE_BYTES..], r, &mut steps) };
        }
        // SAFETY: every step of every band has been written.
        let steps = unsafe { steps[..self.steps].assume_init_ref() };
        let n = self.x.sums.len();
        for (i, first) in (0..n).step_by(TOKENS).enumerate() {
            // A cache line a time of the bands that come next, or nothing that matters behind the last ones.
            for r in 0..R {
                let next = (R + r) * bands.band_bytes + self.first_tile * TILE_BYTES + 64 * i;
                _mm_prefetch::<_MM_HINT_T0>(bands.codes.as_ptr().wrapping_add(next).cast());
            }
            // SAFETY: the caller vouches for the tokens, their tables, sums and outputs.
            unsafe {
                let tables = tables.add(first * BLOCK_STEPS);
                let sums = sums.add(first * R * TILE_ROWS);
                if n - first < TOKENS {
                    self.register_tile::<1, R>(steps, first, tables, sums, out);
                } else {
                    self.register_tile::<TOKENS, R>(steps, first, tables, sums, out);
                }
            }
        }
    }

    /// Writes the part of band `r` in each step.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
    unsafe fn decode<const R: usize>(
        &self,
        decoder: &Decoder,
        band: &[u8],
        r: usize,
        steps: &mut [MaybeUninit<[Step; R]>; BLOCK_STEPS],
    ) {
        let steps = steps.as_mut_ptr().cast::<Step>();
        let step = |s: usize| steps.wrapping_add(s * R + r);
        let (lookups, dots) = band.split_at(self.lookups * TILE_BYTES);
        // SAFETY: whole tiles, and steps of this block.
        unsafe {
            for (i, tile) in lookups.chunks_exact(TILE_BYTES).enumerate() {
                for (q, fields) in by_column(decoder.fields(tile)).into_iter().enumerate() {
                    (*step(i * LOOKUP_STEPS + q)).fields = fields;
                }
            }
            // Any field finds 0 in an empty table.
            for s in self.lookups * LOOKUP_STEPS..self.steps {
                (*step(s)).fields = _mm512_setzero_si512();
            }
            for (i, tile) in dots.chunks_exact(TILE_BYTES).take(self.steps / DOT_STEPS).enumerate() {
                let fields = decoder.fields(tile);
                for digit in 0..DOT_STEPS {
                    (*step(i * DOT_STEPS + digit)).codes = fields.map(|fields| decoder.codes(fields, digit));
                }
            }
        }
    }

    /// Adds the products of `R` bands with `T` tokens to their sums, and writes the outputs when they are complete.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512vbmi")]
    unsafe fn register_tile<const T: usize, const R: usize>(
        &self,
        steps: &[[Step; R]],
        first: usize,
        tables: *const Table,
        sums: *mut i32,
        out: BandOutputs,
    ) {
        let zero = _mm512_setzero_si512();
        let mut found = [[zero; R]; T];
        let mut acc = [[[zero; GROUPS]; R]; T];
        let place =
            |t: usize, r: usize, g: usize| sums.wrapping_add(((t * R + r) * GROUPS + g) * GROUP_ROWS).cast();
        if self.first_tile > 0 {
            for t in 0..T {
                for r in 0..R {
                    for g in 0..GROUPS {
                        // SAFETY: the block before has left its sums there.
                        acc[t][r][g] = unsafe { _mm512_loadu_si512(place(t, r, g)) };
                    }
                }
            }
        }
        // SAFETY: the caller vouches for the tokens.
        let x: [_; T] = from_fn(|t| unsafe { self.token(first + t).add(self.lookups * TILE_COLS) });
        for (s, bands) in steps.iter().enumerate() {
            // SAFETY: each token has a table and four columns for every step.
            let tables: [Table; T] = from_fn(|t| unsafe { tables.add(s * T + t).read() });
            // SAFETY: as above.
            let x: [__m512i; T] = from_fn(|t| unsafe { broadcast(x[t].add(s * COLUMN_STEP)) });
            for (r, step) in bands.iter().enumerate() {
                for t in 0..T {
                    let values = _mm512_permutexvar_epi16(step.fields, tables[t]);
                    found[t][r] = _mm512_add_epi16(found[t][r], values);
                    for g in 0..GROUPS {
                        acc[t][r][g] = _mm512_dpbusd_epi32(acc[t][r][g], step.codes[g], x[t]);
                    }
                }
            }
        }
        // The first group is in the even lanes: of each pair, one counts.
        let lanes = [_mm512_set1_epi32(1), _mm512_set1_epi32(1 << 16)];
        for t in 0..T {
            for r in 0..R {
                for g in 0..GROUPS {
                    acc[t][r][g] = _mm512_dpwssd_epi32(acc[t][r][g], found[t][r], lanes[g]);
                    if !self.is_last {
                        // SAFETY: the caller vouches for the sums of this register tile.
                        unsafe { _mm512_storeu_si512(place(t, r, g), acc[t][r][g]) };
                    }
                }
            }
        }
        if self.is_last {
            for t in 0..T {
                let sum = _mm512_set1_epi32(self.x.sums[first + t]);
                let factor = _mm512_set1_ps(self.x.factors[first + t]);
                for r in 0..R {
                    for g in 0..GROUPS {
                        let y =
                            _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_sub_epi32(acc[t][r][g], sum)), factor);
                        // SAFETY: the caller vouches for the outputs.
                        unsafe { out.write(first + t, r * TILE_ROWS + g * GROUP_ROWS, y) };
                    }
                }
            }
        }
    }
}

impl BandOutputs {
    /// The same from some row on.
    fn rows_from(self, row: usize) -> BandOutputs {
        BandOutputs { out: self.out.wrapping_add(row), rows: self.rows - row, ..self }
    }

    /// 16 rows of a token, but for those beyond the last one.
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn write(self, t: usize, row: usize, y: __m512) {
        let out = self.out.wrapping_add(t * self.pitch + row);
        let rows = self.rows.saturating_sub(row);
        // SAFETY: the caller vouches for the rows that there are.
        unsafe {
            if rows >= GROUP_ROWS {
                _mm512_storeu_ps(out, y);
            } else {
                _mm512_mask_storeu_ps(out, !(u16::MAX << rows), y);
            }
        }
    }
}

/// The fields of a tile, sorted by their first column: of each, those of 32 rows.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn by_column([first, second]: [__m512i; GROUPS]) -> [__m512i; LOOKUP_STEPS] {
    const ODD: __mmask32 = 0xAAAA_AAAA;
    let both = |even, odd| _mm512_mask_blend_epi16(ODD, even, odd);
    [
        both(first, _mm512_slli_epi32::<16>(second)),
        both(_mm512_srli_epi32::<8>(first), _mm512_slli_epi32::<8>(second)),
        both(_mm512_srli_epi32::<16>(first), second),
        both(_mm512_srli_epi32::<24>(first), _mm512_srli_epi32::<8>(second)),
    ]
}

/// What turns activations into tables.
struct Tabulator {
    /// For each place in a tile the three columns that its field holds, in every 32-bit lane.
    columns: [__m512i; LOOKUP_STEPS],
    /// The codes of every field value, in halves that packing puts back in order.
    codes: [__m512i; 2],
}

impl Tabulator {
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn new() -> Self {
        const COLUMNS: [[u8; 64]; LOOKUP_STEPS] = {
            const NONE: u8 = 0x80;
            let mut columns = [[NONE; 64]; LOOKUP_STEPS];
            let mut i = 0;
            while i < LOOKUP_STEPS * 64 {
                let (place, lane) = (i / 64, i % 64);
                if lane % 4 < 3 {
                    columns[place][lane] = (place + lane % 4 * COLUMN_STEP) as u8;
                }
                i += 1;
            }
            columns
        };
        const CODES: [[u8; 64]; 2] = {
            let mut codes = [[0; 64]; 2];
            let mut i = 0;
            while i < 2 * 64 {
                let (half, lane) = (i / 64, i % 64);
                // Packing takes four values of either half in turn.
                let field = lane / 16 * 8 + half * 4 + lane % 16 / 4;
                codes[half][lane] = [field % 3, field / 3 % 3, field / 9 % 3, 0][lane % 4] as u8;
                i += 1;
            }
            codes
        };
        // SAFETY: 64 bytes each.
        let load = |bytes: &[u8; 64]| unsafe { _mm512_loadu_si512(bytes.as_ptr().cast()) };
        Tabulator { columns: COLUMNS.each_ref().map(load), codes: CODES.each_ref().map(load) }
    }

    /// The tables of every token for the steps of a block: those of a register tile beside each other.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
    unsafe fn write_tables(&self, block: &Block<'_>, out: &mut [MaybeUninit<Table>]) {
        let n = block.x.sums.len();
        let zero = _mm512_setzero_si512();
        for t in 0..n {
            let first = t / TOKENS * TOKENS;
            let out = &mut out[first * BLOCK_STEPS + (t - first)..];
            let mut tables = out.iter_mut().step_by(TOKENS.min(n - first)).take(block.steps);
            for tile in 0..block.lookups {
                // SAFETY: the token has this tile's columns and, as a multiplied tile follows, four more.
                let x = unsafe {
                    let x = block.token(t).add(tile * TILE_COLS);
                    _mm512_broadcast_i32x4(_mm_loadu_si128(x.cast()))
                };
                for (columns, table) in self.columns.iter().zip(&mut tables) {
                    let three = _mm512_shuffle_epi8(x, *columns);
                    let [low, high] = self.codes.map(|codes| _mm512_dpbusd_epi32(zero, codes, three));
                    table.write(_mm512_packs_epi32(low, high));
                }
            }
            for table in tables {
                table.write(zero);
            }
        }
    }
}
