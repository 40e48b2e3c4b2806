//! How a model is run on this machine, where there is a choice: the only chooser. What depends on the machine is
//! measured once and remembered.

use std::collections::BTreeMap;
use std::fs;
use std::time::Instant;

use bitnet_quant::kernels::Kernels;
use bitnet_quant::layout::{Layout, Scales, TernaryView, row_bytes, tiles};
use bitnet_quant::linear::{QuantizedRows, bitlinear};
use bitnet_quant::threads::Threads;

use crate::device::CpuCapabilities;
use crate::file::CacheDir;

/// The file in the cache that holds what was measured.
const TIMINGS_FILE: &str = "timings.json";
/// The matrices that are measured: together far more than caches hold.
const ROWS: usize = 2560;
const COLS: usize = 2560;
const MATRICES: usize = 40;
/// Passes over them, of which the fastest counts: other work can only make a pass slower.
const PASSES: usize = 5;

/// The layout that was chosen before, or that is the only one with a kernel.
pub fn known_layout(kernels: &Kernels, threads: &Threads, cache: &CacheDir) -> Option<Layout> {
    if !kernels.has_tiles() {
        return Some(Layout::TwoBit);
    }
    read(cache)?.get(&key(kernels, threads))?.parse().ok()
}

/// The layout in which one token meets ternary weights fastest, with these kernels on these threads: the known one, or
/// else the one that random weights show to be faster. The measurement takes a tenth of a second and 60 MB, and its result
/// is kept in `cache`.
pub fn choose_layout(kernels: &Kernels, threads: &Threads, cache: &CacheDir) -> Layout {
    if let Some(layout) = known_layout(kernels, threads, cache) {
        return layout;
    }
    let [two_bit, tiles] = Layout::ALL.map(|layout| seconds(kernels, threads, layout));
    let chosen = if tiles < two_bit { Layout::Tiles } else { Layout::TwoBit };
    let mut known = read(cache).unwrap_or_default();
    known.insert(key(kernels, threads), chosen.name().to_owned());
    write(cache, &known);
    chosen
}

fn key(kernels: &Kernels, threads: &Threads) -> String {
    let processor = CpuCapabilities::detect().name.unwrap_or_default();
    format!("layout, {}, {} threads, {processor}", kernels.name(), threads.len())
}

/// The least time of a pass over all matrices.
fn seconds(kernels: &Kernels, threads: &Threads, layout: Layout) -> f64 {
    let size = match layout {
        Layout::TwoBit => ROWS * row_bytes(COLS),
        Layout::Tiles => tiles::size_bytes(ROWS, COLS),
    };
    // Codes and fields that are valid in either layout; what they are makes no difference to the time.
    let weights = vec![0b0100_0010u8; MATRICES * size];
    let mut codes = vec![0; QuantizedRows::codes_len(1, COLS)];
    let (mut factors, mut sums, mut out) = ([0.0], [0], vec![0.0; ROWS]);
    let mut x = QuantizedRows::new(&mut codes, &mut factors, &mut sums);
    // Finite by construction, so that there is no error to look at.
    let _ = x.quantize(kernels, threads, &[1.0; COLS], COLS);
    let passes = (0..PASSES).map(|_| {
        let start = Instant::now();
        for weights in weights.chunks_exact(size) {
            let view = match layout {
                Layout::TwoBit => TernaryView::new(weights, ROWS, COLS, Scales::Tensor(1.0)),
                Layout::Tiles => TernaryView::tiled(weights, ROWS, COLS, 1.0),
            };
            bitlinear(kernels, threads, [&view], &x, [&mut out]);
        }
        start.elapsed().as_secs_f64()
    });
    passes.fold(f64::INFINITY, f64::min)
}

fn read(cache: &CacheDir) -> Option<BTreeMap<String, String>> {
    serde_json::from_slice(&fs::read(cache.path(TIMINGS_FILE)).ok()?).ok()
}

/// What cannot be written is measured again next time.
fn write(cache: &CacheDir, known: &BTreeMap<String, String>) {
    if cache.make_room(0).is_ok()
        && let Ok(json) = serde_json::to_vec_pretty(known)
    {
        let _ = fs::write(cache.path(TIMINGS_FILE), json);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_choice_is_measured_once_and_remembered() {
        let folder = tempfile::tempdir().unwrap();
        let cache = CacheDir::new(folder.path(), u64::MAX);
        let (kernels, threads) = (Kernels::best(), Threads::new(1));
        let chosen = choose_layout(kernels, &threads, &cache);
        if !kernels.has_tiles() {
            assert_eq!((chosen, read(&cache)), (Layout::TwoBit, None));
            return;
        }
        let mut known = read(&cache).unwrap();
        assert_eq!(known.values().collect::<Vec<_>>(), [chosen.name()]);
        let other = Layout::ALL.into_iter().find(|layout| *layout != chosen).unwrap();
        known.values_mut().for_each(|name| *name = other.name().to_owned());
        write(&cache, &known);
        assert_eq!(choose_layout(kernels, &threads, &cache), other, "read, not measured again");
    }

    #[test]
    fn without_a_kernel_for_tiles_there_is_no_choice() {
        let folder = tempfile::tempdir().unwrap();
        let cache = CacheDir::new(folder.path(), u64::MAX);
        assert_eq!(choose_layout(Kernels::available()[0], &Threads::new(1), &cache), Layout::TwoBit);
    }
}
