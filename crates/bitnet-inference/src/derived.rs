//! Weights in forms that are computed from a model's file once, kept in the user's cache, and mapped afterwards.
//!
//! A derived file is a safetensors file. It belongs to one source file, as that is now: the name holds what tells a
//! changed file from the old one. Each tensor has a checksum, and a file that fails it is made again.

use std::collections::BTreeMap;
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use bitnet_core::Result as CoreResult;
use bitnet_core::file::safetensors::{self, Dtype, SafeTensors, TensorSpec};
use bitnet_core::file::{Bytes, CacheDir, DERIVED_SUFFIX, Mapping, TensorSink};
use bitnet_quant::dense::DenseFormat;
use bitnet_quant::head;
use bitnet_quant::kernels::Kernels;
use bitnet_quant::layout::{Codes, Scales, TernaryView, row_bytes, tiles};
use bitnet_quant::linear::DenseView;
use bitnet_quant::packing::I2sLayout;
use bitnet_quant::threads::Threads;

use crate::Result;
use crate::source::{Proj, Source};
use crate::weights::{LoadProgress, Weights};

/// Changes with every change of a derived form.
const FORMS: &str = "3";
/// Samples of a file that are part of its identity, from its beginning to its end, and the bytes of each.
const SAMPLES: u64 = 16;
const SAMPLE_BYTES: u64 = 4 << 10;
/// The image of the derived head. It is the first tensor, because it must be aligned.
const HEAD: &str = "head";
/// The tensor that holds the checksums of the others, in their order.
const CHECKSUMS: &str = "checksums";
/// The tensor of the scales of all projections that are in tiles.
const SCALES: &str = "scales";
/// Bands that are packed at a time: some megabytes.
const BATCH_BANDS: usize = 256;

/// Where the derived file of a source is kept.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    cache: CacheDir,
    name: String,
    forms: Forms,
}

/// What a derived file holds.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Forms {
    /// The projections in tiles.
    pub(crate) tiles: bool,
    /// The head in planes.
    pub(crate) head: bool,
    /// The format of its rows where it is not the file's: the bounds are of what is computed.
    pub(crate) converted_head: Option<DenseFormat>,
}

impl Forms {
    /// `None` where there is nothing to derive.
    fn name(self) -> Option<String> {
        let name = match (self.tiles, self.head) {
            (true, true) => "tiles-head",
            (true, false) => "tiles",
            (false, true) => "head",
            (false, false) => return None,
        };
        let format = self.converted_head.filter(|_| self.head);
        Some(format.map_or(name.to_owned(), |format| format!("{name}-{format}")))
    }
}

impl Place {
    /// `None` for a source that is no file, or that cannot be read.
    pub(crate) fn of(
        source: &dyn Source,
        i2s_layout: I2sLayout,
        cache: &CacheDir,
        forms: Forms,
    ) -> Option<Self> {
        let path = fs::canonicalize(source.path()).ok()?;
        let mut hash = DefaultHasher::new();
        path.hash(&mut hash);
        for file in files_of(&path)? {
            hash_file(&file, &mut hash).ok()?;
        }
        let stem = path.file_stem()?.to_string_lossy();
        let stem: String =
            stem.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).take(64).collect();
        let (forms_name, hash) = (forms.name()?, hash.finish());
        let name = format!("{stem}-{i2s_layout}-{forms_name}-{FORMS}-{hash:016x}{DERIVED_SUFFIX}");
        Some(Place { cache: cache.clone(), name, forms })
    }

    /// The derived file, if it is there and whole.
    pub(crate) fn open(&self, n_threads: usize) -> Option<Derived> {
        let path = self.cache.path(&self.name);
        let file = SafeTensors::parse(Mapping::open(&path).ok()?).ok();
        let derived = file.and_then(|file| Derived::check(file, n_threads));
        match &derived {
            Some(_) => self.cache.touch(&self.name),
            // Whatever it is, it is of no use, and in the way.
            None => drop(fs::remove_file(&path)),
        }
        derived
    }

    /// Writes the derived file of `weights`, on `threads`. Ends without one when `cancel` becomes true.
    pub(crate) fn build(
        &self,
        weights: &Weights,
        kernels: &Kernels,
        threads: &Threads,
        cancel: &AtomicBool,
        progress: &(dyn Fn(LoadProgress) + Sync),
    ) -> Result<()> {
        let parts = self.parts(weights);
        if parts.is_empty() {
            return Ok(());
        }
        let scales: Vec<u8> = parts.iter().flat_map(|part| part.scale().to_le_bytes()).collect();
        let sizes: Vec<[usize; 1]> = parts.iter().map(|p| [p.size_bytes()]).collect();
        let (n_scales, n_sums) = ([parts.len()], [parts.len() + 1]);
        let mut specs: Vec<TensorSpec<'_>> = parts
            .iter()
            .zip(&sizes)
            .map(|(part, size)| TensorSpec { name: &part.name, dtype: Dtype::U8, shape: size })
            .collect();
        specs.push(TensorSpec { name: SCALES, dtype: Dtype::F32, shape: &n_scales });
        specs.push(TensorSpec { name: CHECKSUMS, dtype: Dtype::U32, shape: &n_sums });

        let total = parts.len();
        let mut checksums: Vec<u8> = Vec::new();
        self.cache.make_room(sizes.iter().map(|[n]| *n as u64).sum())?;
        let written =
            safetensors::write(&self.cache.path(&self.name), &BTreeMap::new(), &specs, |i, sink| {
                if i > total {
                    return sink.write(&checksums);
                }
                let mut sink = Summed { sink, hash: crc32fast::Hasher::new(), cancel };
                match parts.get(i) {
                    Some(part) => {
                        part.write(kernels, threads, &mut sink)?;
                        progress(LoadProgress { done: i + 1, total });
                    }
                    None => sink.write(&scales)?,
                }
                checksums.extend(sink.hash.finalize().to_le_bytes());
                Ok(())
            });
        match written {
            Err(_) if cancel.load(Ordering::Relaxed) => Ok(()),
            other => Ok(other?),
        }
    }
}

/// The making of a derived file beside other work. Dropping it ends the making, without a file.
#[derive(Debug)]
pub(crate) struct Preparing {
    cancel: Arc<AtomicBool>,
    progress: Arc<Mutex<LoadProgress>>,
    thread: Mutex<Option<JoinHandle<Result<()>>>>,
}

impl Preparing {
    pub(crate) fn start(place: Place, weights: Arc<Weights>, kernels: &'static Kernels) -> Self {
        let cancel = Arc::new(AtomicBool::new(false));
        let progress = Arc::new(Mutex::new(LoadProgress { done: 0, total: 0 }));
        let making = {
            let (cancel, progress) = (cancel.clone(), progress.clone());
            // One thread, so that the run that it is beside keeps the others.
            move || place.build(&weights, kernels, &Threads::new(1), &cancel, &|now| *lock(&progress) = now)
        };
        // A system without another thread to give leaves the work to a later run.
        let thread = std::thread::Builder::new().name("bitnet-prepare".into()).spawn(making).ok();
        Preparing { cancel, progress, thread: Mutex::new(thread) }
    }

    /// Waits for the file, as long as `progress` says so.
    pub(crate) fn finish(&self, progress: &mut dyn FnMut(LoadProgress) -> bool) -> Result<()> {
        let Some(thread) = lock(&self.thread).take() else { return Ok(()) };
        while !thread.is_finished() {
            if !progress(*lock(&self.progress)) {
                self.cancel.store(true, Ordering::Relaxed);
                break;
            }
            std::thread::park_timeout(Duration::from_millis(50));
        }
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}

impl Drop for Preparing {
    fn drop(&mut self) {
        self.cancel.store(true, Ordering::Relaxed);
        if let Some(thread) = lock(&self.thread).take() {
            // Nobody is left to hear of a failure, and the next run makes the file.
            let _ = thread.join();
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The files that a model consists of, those beside a single safetensors file that say what it means among them; `None`
/// where `path` is none.
fn files_of(path: &Path) -> Option<Vec<PathBuf>> {
    let has = |path: &Path, end: &str| path.extension().is_some_and(|e| e == end);
    let (folder, single) = match path.is_dir() {
        true => (path, None),
        false if has(path, "safetensors") => (path.parent()?, Some(path)),
        false => return path.is_file().then(|| vec![path.to_owned()]),
    };
    let is_part = |path: &PathBuf| match single {
        Some(file) => path == file || has(path, "json"),
        None => has(path, "safetensors") || has(path, "json"),
    };
    let mut files: Vec<PathBuf> =
        fs::read_dir(folder).ok()?.flatten().map(|entry| entry.path()).filter(is_part).collect();
    files.sort();
    Some(files)
}

/// What tells a file from others and from what it was before.
fn hash_file(path: &Path, hash: &mut DefaultHasher) -> io::Result<()> {
    let meta = fs::metadata(path)?;
    (meta.len(), meta.modified()?).hash(hash);
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt;
        (meta.dev(), meta.ino(), meta.ctime(), meta.ctime_nsec()).hash(hash);
    }
    let mut file = fs::File::open(path)?;
    let last = meta.len().saturating_sub(SAMPLE_BYTES);
    for sample in 0..SAMPLES {
        let mut bytes = Vec::new();
        file.seek(SeekFrom::Start(last / (SAMPLES - 1) * sample))?;
        file.by_ref().take(SAMPLE_BYTES).read_to_end(&mut bytes)?;
        bytes.hash(hash);
    }
    Ok(())
}

/// A tensor of a derived file, and what it is made from.
struct DerivedPart<'a> {
    name: String,
    origin: Origin<'a>,
}

enum Origin<'a> {
    Tiles(TernaryView<'a>),
    Head(DenseView<'a>),
}

impl DerivedPart<'_> {
    fn size_bytes(&self) -> usize {
        match &self.origin {
            Origin::Tiles(view) => tiles::size_bytes(view.rows(), view.cols()),
            Origin::Head(view) => head::image_bytes(view.rows(), view.cols()).unwrap_or(0),
        }
    }

    /// The scale of a projection.
    fn scale(&self) -> f32 {
        match &self.origin {
            Origin::Tiles(view) => match view.scales() {
                Scales::Tensor(scale) => scale,
                Scales::Blocks { .. } => unreachable!("tiles have one scale"),
            },
            Origin::Head(_) => 1.0,
        }
    }

    fn write(&self, kernels: &Kernels, threads: &Threads, sink: &mut Summed<'_, '_>) -> CoreResult<()> {
        match &self.origin {
            Origin::Tiles(view) => write_tiles(view, threads, sink),
            Origin::Head(view) => head::build(kernels, threads, view, |bytes| sink.write(bytes)),
        }
    }
}

impl Place {
    fn parts<'a>(&self, weights: &'a Weights) -> Vec<DerivedPart<'a>> {
        let head = self
            .forms
            .head
            .then(|| DerivedPart { name: HEAD.to_owned(), origin: Origin::Head(weights.head().view()) });
        let layers = weights.layers.iter().enumerate().filter(|_| self.forms.tiles);
        let projections = layers.flat_map(|(l, layer)| {
            Proj::ALL.into_iter().filter_map(move |proj| {
                let view = layer.projection(proj).matrix.bit_linear()?.view();
                let origin = matches!(view.scales(), Scales::Tensor(_)).then_some(Origin::Tiles(view))?;
                Some(DerivedPart { name: tiles_name(l, proj), origin })
            })
        });
        head.into_iter().chain(projections).collect()
    }
}

fn tiles_name(l: usize, proj: Proj) -> String {
    format!("layers.{l}.{}.tiles", proj.gguf())
}

fn write_tiles(view: &TernaryView<'_>, threads: &Threads, sink: &mut Summed<'_, '_>) -> CoreResult<()> {
    let Codes::Rows(codes) = view.codes() else { unreachable!("derived from the two-bit layout") };
    let (row_bytes, band_bytes) = (row_bytes(view.cols()), tiles::band_bytes(view.cols()));
    for codes in codes.chunks(BATCH_BANDS * tiles::TILE_ROWS * row_bytes) {
        let bands: Vec<&[u8]> = codes.chunks(tiles::TILE_ROWS * row_bytes).collect();
        let packed: Vec<Mutex<Vec<u8>>> = bands.iter().map(|_| Mutex::new(vec![0; band_bytes])).collect();
        threads.run(bands.len(), &|band| {
            tiles::pack_band(bands[band], view.cols(), &mut lock(&packed[band]));
        });
        for band in &packed {
            sink.write(&lock(band))?;
        }
    }
    Ok(())
}

/// A sink that keeps count of a checksum and takes nothing more when it is cancelled.
struct Summed<'a, 'b> {
    sink: &'a mut TensorSink<'b>,
    hash: crc32fast::Hasher,
    cancel: &'a AtomicBool,
}

impl Summed<'_, '_> {
    fn write(&mut self, bytes: &[u8]) -> CoreResult<()> {
        if self.cancel.load(Ordering::Relaxed) {
            return Err(self.sink.interrupted());
        }
        self.hash.update(bytes);
        self.sink.write(bytes)
    }
}

/// An open derived file.
#[derive(Debug)]
pub(crate) struct Derived {
    file: SafeTensors,
    scales: BTreeMap<String, f32>,
}

impl Derived {
    /// `None` when a checksum does not fit.
    fn check(file: SafeTensors, n_threads: usize) -> Option<Self> {
        let sums = &file.get(CHECKSUMS)?.bytes;
        let summed: Vec<_> = file.tensors().filter(|t| t.name != CHECKSUMS).collect();
        if sums.len() != 4 * summed.len() {
            return None;
        }
        let (next, whole) = (AtomicUsize::new(0), AtomicBool::new(true));
        std::thread::scope(|scope| {
            for _ in 0..n_threads {
                scope.spawn(|| {
                    loop {
                        let i = next.fetch_add(1, Ordering::Relaxed);
                        let (Some(tensor), Some(want)) = (summed.get(i), sums.get(4 * i..4 * i + 4)) else {
                            break;
                        };
                        if crc32fast::hash(&tensor.bytes).to_le_bytes() != want {
                            whole.store(false, Ordering::Relaxed);
                        }
                    }
                });
            }
        });
        if !whole.into_inner() {
            return None;
        }
        let names =
            file.tensors().filter(|t| t.name != CHECKSUMS && t.name != SCALES).map(|t| t.name.clone());
        let scales = file.get(SCALES)?.bytes.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes));
        let scales = names.zip(scales).collect();
        Some(Derived { file, scales })
    }

    /// The tiles and the scale of a projection; `None` when the file does not have them in this shape.
    pub(crate) fn tiles(&self, l: usize, proj: Proj, rows: usize, cols: usize) -> Option<(Bytes, f32)> {
        let name = tiles_name(l, proj);
        let tensor = self.file.get(&name)?;
        let scale = self.scales.get(&name)?;
        (tensor.bytes.len() == tiles::size_bytes(rows, cols)).then(|| (tensor.bytes.clone(), *scale))
    }

    /// The image of the derived head, if the file has one.
    pub(crate) fn head(&self) -> Option<Bytes> {
        Some(self.file.get(HEAD)?.bytes.clone())
    }
}
