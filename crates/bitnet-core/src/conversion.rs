//! The only converter between number formats, of tensors and of stored matrices.
//!
//! A conversion reads a tensor chunk by chunk as numbers and writes them as elements of the other type, with the formulas
//! of `conversion/elements.rs`. Beside the result it takes the memory of the chunks and no more, all of it from the pool; a
//! view with gaps is copied to a tensor without first, and matrices take a row for each thread.
//! Every type converts to every other; what is refused is a value that the type asked for cannot hold.

mod elements;
mod matrix;
mod pipeline;
mod stats;

use std::ops::Range;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use bitnet_quant::reduce::MeanAbs;

use crate::memory::{ALIGNMENT, HybridMemoryPool};
use crate::tensor::BitNetTensor;
use crate::{BitNetDType, Error, Result};
use elements::{Grid, Real, UNIT, largest_code, misfit, read, write};

pub use matrix::StoredMatrix;
pub use pipeline::ConversionPipeline;
pub use stats::ConversionStats;

/// The smallest chunk: a unit of elements in double precision.
pub const MIN_CHUNK_BYTES: usize = UNIT * size_of::<f64>();
/// Elements that are worth a thread of their own.
const THREAD_ELEMENTS: usize = 64 << 10;
/// Tensors without a magnitude of at least this become codes of zero: the factor of larger ones is finite.
const SMALLEST_MAGNITUDE: f32 = 1e-35;

/// How values become codes and narrower floats.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ConversionStrategy {
    /// A code is the value itself, rounded and cut off at the ends: for values that are whole numbers.
    Direct,
    /// The codes of I8 and I4 reach just as far as the tensor's largest magnitude; ternary codes are in units of the
    /// mean magnitude, as BitNet b1.58 defines it.
    #[default]
    Scaled,
    /// As `Scaled`, but what was quantised before keeps its codes, and its scale, wherever the type asked for holds them.
    QuantizationAware,
    /// As `Scaled`, but rounded up or down by chance, more often to the nearer side, so that the mean error is zero.
    StochasticRounding,
}

/// How conversions are done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConversionConfig {
    /// How values become codes and narrower floats.
    pub strategy: ConversionStrategy,
    /// Whether floats remember the scale of the integers that they were made from, so that a quantisation-aware
    /// conversion finds the way back.
    pub preserve_metadata: bool,
    /// Whether values beyond the ends of the type asked for are errors; they become infinities or the largest codes
    /// otherwise. What is not finite is never taken for an integer.
    pub validate_results: bool,
    /// Bytes of numbers between reading and writing, those of all threads together: what a conversion needs beside its
    /// result. At least [`MIN_CHUNK_BYTES`].
    pub chunk_bytes: usize,
    /// Threads of one conversion, or of one batch, where there is enough to do.
    pub threads: usize,
    /// Whether what lies between two types is in double precision, and so rounded only at the end.
    pub double_precision: bool,
    /// What the draws of [`ConversionStrategy::StochasticRounding`] depend on, beside the place of the element.
    pub seed: u64,
}

impl Default for ConversionConfig {
    fn default() -> Self {
        ConversionConfig {
            strategy: ConversionStrategy::default(),
            preserve_metadata: true,
            validate_results: false,
            chunk_bytes: 16 << 10,
            threads: 1,
            double_precision: false,
            seed: 0,
        }
    }
}

impl ConversionConfig {
    /// All hardware threads, each with a chunk that its nearest cache holds.
    pub fn high_performance() -> Self {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        ConversionConfig { threads, chunk_bytes: threads * (16 << 10), ..Self::default() }
    }

    /// One thread and the least memory.
    pub fn low_memory() -> Self {
        ConversionConfig { chunk_bytes: MIN_CHUNK_BYTES, ..Self::default() }
    }

    /// Rounded once, and nothing cut off unseen.
    pub fn high_precision() -> Self {
        ConversionConfig { double_precision: true, validate_results: true, ..Self::default() }
    }
}

/// Converts tensors into pool memory. Clones share their statistics.
#[derive(Debug, Clone)]
pub struct ConversionEngine {
    config: ConversionConfig,
    pool: HybridMemoryPool,
    stats: Arc<Mutex<ConversionStats>>,
}

impl ConversionEngine {
    /// An engine whose results live in `pool`.
    pub fn new(config: ConversionConfig, pool: HybridMemoryPool) -> Result<Self> {
        check_chunk(config.chunk_bytes)?;
        if config.threads == 0 {
            return Err(Error::bad_setting("the threads of conversions", "at least 1"));
        }
        Ok(ConversionEngine { config, pool, stats: Arc::default() })
    }

    /// How conversions are done.
    pub fn config(&self) -> &ConversionConfig {
        &self.config
    }

    /// `tensor` as `dtype`. Nothing is copied when it has that type already.
    pub fn convert(&self, tensor: &BitNetTensor, dtype: BitNetDType) -> Result<BitNetTensor> {
        self.streaming_convert(tensor, dtype, self.config.chunk_bytes)
    }

    /// The same, with at most `chunk_bytes` of memory beside the result.
    pub fn streaming_convert(
        &self,
        tensor: &BitNetTensor,
        dtype: BitNetDType,
        chunk_bytes: usize,
    ) -> Result<BitNetTensor> {
        if tensor.dtype() == dtype {
            return self.zero_copy_convert(tensor, dtype);
        }
        self.counted(tensor.size_bytes(), || {
            check_chunk(chunk_bytes)?;
            if self.config.double_precision {
                self.copied::<f64>(tensor, dtype, chunk_bytes)
            } else {
                self.copied::<f32>(tensor, dtype, chunk_bytes)
            }
        })
    }

    /// The same bytes as `dtype`, which only the type that they have is: what would need a copy is refused.
    pub fn zero_copy_convert(&self, tensor: &BitNetTensor, dtype: BitNetDType) -> Result<BitNetTensor> {
        self.counted(0, || match tensor.dtype() == dtype {
            true => Ok(tensor.clone()),
            false => Err(Error::NotZeroCopy { from: tensor.dtype(), to: dtype }),
        })
    }

    /// Makes `tensor` one of `dtype`. Where that is no wider and nobody shares the bytes, they are overwritten where they
    /// are, which takes no memory but the chunk; what is over comes back when the tensor goes. On an error the tensor is
    /// what it was.
    pub fn in_place_convert(&self, tensor: &mut BitNetTensor, dtype: BitNetDType) -> Result<()> {
        if dtype.bits() > tensor.dtype().bits() || tensor.own_bytes_mut().is_none() {
            *tensor = self.convert(tensor, dtype)?;
            return Ok(());
        }
        if tensor.dtype() == dtype {
            return self.zero_copy_convert(tensor, dtype).map(drop);
        }
        self.counted(tensor.size_bytes(), || match self.config.double_precision {
            true => self.overwritten::<f64>(tensor, dtype),
            false => self.overwritten::<f32>(tensor, dtype),
        })
    }

    /// Each of `tensors` as `dtype`, in their order, several at a time where the engine has threads.
    pub fn batch_convert(&self, tensors: &[BitNetTensor], dtype: BitNetDType) -> Result<Vec<BitNetTensor>> {
        let shares = self.config.chunk_bytes / MIN_CHUNK_BYTES;
        let threads = self.config.threads.min(tensors.len()).min(shares).max(1);
        // Each conversion has a thread and its share of the chunk.
        let chunk_bytes = self.config.chunk_bytes / threads;
        let config = ConversionConfig { threads: 1, chunk_bytes, ..self.config.clone() };
        let one = ConversionEngine { config, ..self.clone() };
        let share = tensors.len().div_ceil(threads).max(1);
        let parts: Vec<Result<Vec<_>>> = std::thread::scope(|scope| {
            let convert = |part: &[BitNetTensor]| part.iter().map(|t| one.convert(t, dtype)).collect();
            let (first, rest) = tensors.split_at(share.min(tensors.len()));
            let rest: Vec<_> = rest.chunks(share).map(|part| scope.spawn(move || convert(part))).collect();
            let join = |part: std::thread::ScopedJoinHandle<'_, _>| {
                part.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            };
            std::iter::once(convert(first)).chain(rest.into_iter().map(join)).collect()
        });
        Ok(parts.into_iter().collect::<Result<Vec<_>>>()?.concat())
    }

    /// What the engine and its clones have done.
    pub fn get_stats(&self) -> ConversionStats {
        self.stats.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
    }

    /// Does a conversion that reads `bytes` and takes note of it.
    fn counted<T>(&self, bytes: usize, conversion: impl FnOnce() -> Result<T>) -> Result<T> {
        let start = Instant::now();
        let result = conversion();
        let mut stats = self.stats.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        stats.count(result.is_ok(), bytes, start.elapsed());
        result
    }

    fn copied<R: Real>(
        &self,
        tensor: &BitNetTensor,
        dtype: BitNetDType,
        chunk_bytes: usize,
    ) -> Result<BitNetTensor> {
        let tensor = &tensor.contiguous(&self.pool)?;
        let source = Elements::of(tensor);
        let n_units = source.len.div_ceil(UNIT);
        let units = (chunk_bytes / size_of::<R>() / UNIT).min(n_units).max(1);
        let threads = self.config.threads.min(units).min(source.len.div_ceil(THREAD_ELEMENTS)).max(1);
        let mut chunks = self.pool.buffer::<R>(units * UNIT)?;
        let conversion = self.plan(&source, dtype, &mut chunks)?;
        let size = dtype.size_bytes(source.len).unwrap_or(usize::MAX);
        let mut out = self.pool.allocate(size, ALIGNMENT, &tensor.device())?;
        let span = n_units.div_ceil(threads).max(1) * UNIT;
        let chunk = units / threads * UNIT;
        std::thread::scope(|scope| {
            let outs = out.as_mut_slice().chunks_mut(bytes_of(dtype, span));
            let spans = outs.zip(chunks.chunks_mut(chunk)).enumerate();
            let mut spans = spans.map(|(i, (out, chunk))| {
                let first = i * span;
                let (source, conversion) = (&source, &conversion);
                move || {
                    source.each(first..source.len.min(first + span), chunk, |at, values| {
                        let out = &mut out[bytes_of(dtype, at - first)..][..bytes_of(dtype, values.len())];
                        write(dtype, conversion.grid, at, values, out);
                    });
                }
            });
            let own = spans.next();
            spans.for_each(|span| drop(scope.spawn(span)));
            own.into_iter().for_each(|mut span| span());
        });
        drop(chunks);
        Ok(BitNetTensor::from_handle(out, tensor.shape(), dtype)?.with_scale(conversion.scale))
    }

    fn overwritten<R: Real>(&self, tensor: &mut BitNetTensor, dtype: BitNetDType) -> Result<()> {
        let source = Elements::of(tensor);
        let units = (self.config.chunk_bytes / size_of::<R>() / UNIT).min(source.len.div_ceil(UNIT)).max(1);
        let mut chunk = self.pool.buffer::<R>(units * UNIT)?;
        // Nothing is written before everything is known to fit.
        let conversion = self.plan(&source, dtype, &mut chunk)?;
        let Elements { dtype: from, scale, len, .. } = source;
        let bytes = tensor.own_bytes_mut().expect("asked for before");
        for at in (0..len).step_by(chunk.len()) {
            let values = &mut chunk[..(units * UNIT).min(len - at)];
            read(from, scale, &bytes[bytes_of(from, at)..][..bytes_of(from, values.len())], values);
            // Behind what was read, as elements do not grow.
            write(
                dtype,
                conversion.grid,
                at,
                values,
                &mut bytes[bytes_of(dtype, at)..][..bytes_of(dtype, values.len())],
            );
        }
        tensor.retype(dtype, conversion.scale);
        Ok(())
    }

    /// Looks at all values, where that is needed, for the scale and for what has no place in `dtype`.
    fn plan<R: Real>(&self, source: &Elements<'_>, dtype: BitNetDType, chunk: &mut [R]) -> Result<Plan<R>> {
        let ConversionConfig { strategy, preserve_metadata, validate_results, seed, .. } = self.config;
        let stochastic = (strategy == ConversionStrategy::StochasticRounding).then_some(seed);
        // Where all magnitudes are known to be finite, what is scaled to them fits.
        let mut search = validate_results || strategy == ConversionStrategy::Direct;
        let (factor, scale) = match largest_code(dtype) {
            None => (R::from_f32(1.0), source.step.filter(|_| preserve_metadata)),
            Some(_) if strategy == ConversionStrategy::Direct => (R::from_f32(1.0), None),
            Some(largest) => {
                let (absmax, mean) = source.magnitudes(dtype == BitNetDType::BitNet158, chunk);
                search |= !absmax.is_finite();
                let kept = source.step.filter(|step| {
                    let holds = (absmax / step).round_ties_even() <= largest;
                    strategy == ConversionStrategy::QuantizationAware && *step >= SMALLEST_MAGNITUDE && holds
                });
                match (kept, mean) {
                    (Some(step), _) => (R::ratio(1.0, step), Some(step)),
                    // Not less than the threshold where it is NaN.
                    _ if absmax < SMALLEST_MAGNITUDE => (R::from_f32(0.0), Some(0.0)),
                    (None, Some(mean)) => (R::ratio(1.0, mean), Some(mean)),
                    (None, None) => (R::ratio(largest, absmax), Some(absmax / largest)),
                }
            }
        };
        if search && (largest_code(dtype).is_some() || validate_results) {
            // Codes that are scaled to the largest magnitude fit, and ternary ones are meant to be cut off.
            let strict = validate_results && (scale.is_none() || largest_code(dtype).is_none());
            let mut misfits = None;
            source.each(0..source.len, chunk, |first, values| {
                let found = || misfit(dtype, factor, strict, values).map(|i| (first + i, values[i].to_f64()));
                misfits = misfits.or_else(found);
            });
            if let Some((index, value)) = misfits {
                return Err(Error::Unrepresentable { index, value, to: dtype });
            }
        }
        Ok(Plan { grid: Grid { factor, stochastic }, scale })
    }
}

/// How a tensor is converted.
#[derive(Debug)]
struct Plan<R> {
    grid: Grid<R>,
    /// The scale of the result.
    scale: Option<f32>,
}

/// The elements of a tensor.
#[derive(Debug)]
struct Elements<'a> {
    dtype: BitNetDType,
    bytes: &'a [u8],
    len: usize,
    /// What codes are multiplied with.
    scale: f32,
    step: Option<f32>,
}

impl<'a> Elements<'a> {
    fn of(tensor: &'a BitNetTensor) -> Self {
        let step = tensor.scale();
        let scale = step.unwrap_or(1.0);
        Elements { dtype: tensor.dtype(), bytes: tensor.as_bytes(), len: tensor.len(), scale, step }
    }

    /// Calls `f(first element, values)` for chunks of the elements in `range`, which begins at a multiple of [`UNIT`].
    fn each<R: Real>(&self, range: Range<usize>, chunk: &mut [R], mut f: impl FnMut(usize, &[R])) {
        let len = chunk.len();
        for at in range.clone().step_by(len) {
            let values = &mut chunk[..len.min(range.end - at)];
            let bytes = &self.bytes[bytes_of(self.dtype, at)..][..bytes_of(self.dtype, values.len())];
            read(self.dtype, self.scale, bytes, values);
            f(at, values);
        }
    }

    /// The largest magnitude, NaN where there is one, and if asked for the mean.
    fn magnitudes<R: Real>(&self, with_mean: bool, chunk: &mut [R]) -> (f32, Option<f32>) {
        // As bits, so that an infinity or NaN is the largest.
        let (mut absmax, mut mean) = (0, MeanAbs::default());
        self.each(0..self.len, chunk, |_, values| {
            absmax = values.iter().fold(absmax, |m, x| m.max(x.to_f32().to_bits() & 0x7fff_ffff));
            if with_mean {
                let mut wide = [0.0; UNIT];
                for values in values.chunks(UNIT) {
                    wide.iter_mut().zip(values).for_each(|(wide, x)| *wide = x.to_f32());
                    mean.push(&wide[..values.len()]);
                }
            }
        });
        (f32::from_bits(absmax), with_mean.then(|| mean.finish()))
    }
}

/// Bytes of the first `n` elements.
fn bytes_of(dtype: BitNetDType, n: usize) -> usize {
    (n * dtype.bits()).div_ceil(8)
}

fn check_chunk(chunk_bytes: usize) -> Result<()> {
    match chunk_bytes >= MIN_CHUNK_BYTES {
        true => Ok(()),
        false => Err(Error::bad_setting("the chunk of conversions", "at least 1024 bytes")),
    }
}

#[cfg(test)]
mod tests;
