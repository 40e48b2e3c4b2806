//! Weights in forms that are kept in the cache: they change no result, and a cache that is broken or stale is no harm.

use std::fs;
use std::path::{Path, PathBuf};

use bitnet_core::file::{CacheDir, DERIVED_SUFFIX};
use bitnet_inference::{Model, ModelOptions, Preparation, SessionOptions, synth};
use bitnet_quant::kernels::Kernels;
use bitnet_quant::layout::Layout;
use bitnet_quant::packing::{I2sLayout, TernaryFormat};

use crate::common::bits;
use crate::synth::tiny;

const TOKENS: [u32; 9] = [1, 5, 900, 3, 77, 12, 500, 8, 2];

struct Folder {
    folder: tempfile::TempDir,
    model: PathBuf,
}

impl Folder {
    fn new(seed: u64) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let model = folder.path().join("model.gguf");
        write_model(&model, seed);
        Folder { folder, model }
    }

    fn open(&self, layout: Option<Layout>, preparation: Preparation) -> Model {
        let cache = Some(CacheDir::new(self.folder.path().join("cache"), u64::MAX));
        let options = ModelOptions { layout, preparation, cache, ..Default::default() };
        Model::open_with(&self.model, &options, &mut |_| ()).unwrap()
    }

    fn cached(&self) -> Vec<PathBuf> {
        let Ok(entries) = fs::read_dir(self.folder.path().join("cache")) else { return Vec::new() };
        let mut files: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
        files.retain(|path| path.to_string_lossy().ends_with(DERIVED_SUFFIX));
        files
    }
}

fn write_model(path: &Path, seed: u64) {
    let options = synth::SynthOptions { seed, ..tiny("2b-4t", TernaryFormat::I2s(I2sLayout::Block128)) };
    synth::write(path, &options, &mut |_| ()).unwrap();
}

/// A model that is large enough to be made ready in the background: 68 MB of weights in two bits.
fn large_folder() -> Folder {
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("model.gguf");
    let mut options = tiny("2b-4t", TernaryFormat::I2s(I2sLayout::Block128));
    let config = &mut options.shape.config;
    (config.dim, config.ffn_dim, config.n_layers) = (2048, 7680, 5);
    (config.n_heads, config.n_kv_heads, config.vocab_size) = (32, 8, 1100);
    synth::write(&model, &options, &mut |_| ()).unwrap();
    Folder { folder, model }
}

fn logits(model: &Model) -> Vec<u32> {
    bits(model.session(SessionOptions::default()).unwrap().forward(&TOKENS).unwrap())
}

#[test]
fn every_layout_and_every_way_to_it_gives_the_same_bits() {
    let folder = Folder::new(1);
    let want = logits(&folder.open(Some(Layout::TwoBit), Preparation::Never));
    assert_eq!(logits(&folder.open(Some(Layout::Tiles), Preparation::Never)), want);
    assert_eq!(folder.cached(), [] as [&Path; 0], "nothing asked for a file");
    for _ in 0..2 {
        assert_eq!(logits(&folder.open(Some(Layout::Tiles), Preparation::BeforeUse)), want);
        assert_eq!(folder.cached().len(), 1);
    }
    assert_eq!(logits(&folder.open(None, Preparation::InBackground)), want);
}

#[test]
fn kept_weights_are_read_instead_of_the_model_file() {
    let [one, other] = [1, 2].map(Folder::new);
    let open = |folder: &Folder| logits(&folder.open(Some(Layout::Tiles), Preparation::BeforeUse));
    let (want, _) = (open(&one), open(&other));
    // Whole, but the other model's: only what is kept can give other logits than before.
    fs::copy(&other.cached()[0], &one.cached()[0]).unwrap();
    assert_ne!(open(&one), want);
}

#[test]
fn models_that_differ_in_nothing_but_weights_are_told_apart() {
    let folder = Folder::new(1);
    let want = logits(&folder.open(Some(Layout::Tiles), Preparation::BeforeUse));
    let modified = fs::metadata(&folder.model).unwrap().modified().unwrap();
    write_model(&folder.model, 2);
    fs::File::open(&folder.model).unwrap().set_modified(modified).unwrap();
    assert_ne!(logits(&folder.open(Some(Layout::Tiles), Preparation::BeforeUse)), want);
    assert_eq!(folder.cached().len(), 2);
}

#[test]
fn a_changed_model_gets_weights_of_its_own() {
    let folder = Folder::new(1);
    let first = logits(&folder.open(Some(Layout::Tiles), Preparation::BeforeUse));
    write_model(&folder.model, 2);
    let second = logits(&folder.open(Some(Layout::Tiles), Preparation::BeforeUse));
    assert_eq!(second, logits(&folder.open(Some(Layout::TwoBit), Preparation::Never)));
    assert_ne!(first, second);
    assert_eq!(folder.cached().len(), 2);
}

#[test]
fn broken_kept_weights_are_made_again() {
    let folder = Folder::new(1);
    let want = logits(&folder.open(Some(Layout::Tiles), Preparation::BeforeUse));
    let kept = folder.cached().remove(0);
    let whole = fs::read(&kept).unwrap();
    let flipped = |at: usize| {
        let mut bytes = whole.clone();
        bytes[at] ^= 1;
        bytes
    };
    let broken =
        [whole[..whole.len() / 2].to_vec(), Vec::new(), flipped(whole.len() / 2), flipped(whole.len() - 1)];
    for bytes in broken {
        fs::write(&kept, bytes).unwrap();
        assert_eq!(logits(&folder.open(Some(Layout::Tiles), Preparation::BeforeUse)), want);
        assert_eq!(fs::read(&kept).unwrap(), whole);
    }
}

#[test]
fn a_cache_that_cannot_be_written_is_an_error_only_for_those_who_wait_for_it() {
    let folder = Folder::new(1);
    fs::write(folder.folder.path().join("cache"), "a file where the folder should be").unwrap();
    let want = logits(&folder.open(Some(Layout::TwoBit), Preparation::Never));
    assert_eq!(logits(&folder.open(None, Preparation::InBackground)), want);
    let cache = Some(CacheDir::new(folder.folder.path().join("cache"), u64::MAX));
    let options = ModelOptions {
        layout: Some(Layout::Tiles),
        preparation: Preparation::BeforeUse,
        cache,
        ..Default::default()
    };
    let error = Model::open_with(&folder.model, &options, &mut |_| ()).unwrap_err().to_string();
    assert!(error.contains("cache"), "{error}");
}

#[test]
fn a_first_run_leaves_what_later_runs_read_and_an_abandoned_one_nothing() {
    let folder = large_folder();
    let cache = || fs::read_dir(folder.folder.path().join("cache")).map_or(0, |entries| entries.count());
    let first = folder.open(Some(Layout::Tiles), Preparation::InBackground);
    let two_bit = first.projection_bytes();
    drop(first);
    assert_eq!(cache(), 0, "neither a file nor a part of one");

    let first = folder.open(Some(Layout::Tiles), Preparation::InBackground);
    let want = logits(&first);
    let mut seen = 0;
    first
        .finish_preparing(&mut |progress| {
            assert!(progress.done <= progress.total);
            seen += 1;
            true
        })
        .unwrap();
    assert_eq!((first.projection_bytes(), folder.cached().len()), (two_bit, 1));
    let second = folder.open(Some(Layout::Tiles), Preparation::InBackground);
    assert!(second.projection_bytes() < two_bit, "read from the cache");
    assert_eq!(logits(&second), want);
    assert!(seen > 0, "somebody who waits is told how far it is");

    fs::remove_file(folder.cached().remove(0)).unwrap();
    let third = folder.open(Some(Layout::Tiles), Preparation::InBackground);
    third.finish_preparing(&mut |_| false).unwrap();
    assert_eq!(folder.cached(), [] as [&Path; 0], "somebody would not wait");
}

#[test]
fn small_models_have_tiles_where_they_are_decoded_fast() {
    let folder = Folder::new(1);
    let tiles = folder.open(Some(Layout::Tiles), Preparation::Never).projection_bytes();
    let rows = folder.open(Some(Layout::TwoBit), Preparation::Never).projection_bytes();
    let chosen = folder.open(None, Preparation::InBackground).projection_bytes();
    assert!(tiles < rows);
    assert_eq!(chosen, if Kernels::best().has_fast_tiles() { tiles } else { rows });
    assert_eq!(folder.cached(), [] as [&Path; 0]);
}
