//! Files are built byte by byte here, so that the reader is not tested against the writer's own mistakes.

use super::*;

use std::fs;
use std::path::Path;

use bitnet_quant::dense::DenseFormat;
use bitnet_quant::packing::{I2sLayout, TernaryFormat};

const F32: u32 = 0;
const I2_S: u32 = 36;

/// A file under construction.
struct Raw {
    version: u32,
    keys: Vec<Vec<u8>>,
    tensors: Vec<Vec<u8>>,
    data: Vec<u8>,
}

impl Raw {
    fn new() -> Self {
        Raw { version: 3, keys: Vec::new(), tensors: Vec::new(), data: Vec::new() }
    }

    fn key(mut self, key: impl AsRef<[u8]>, value_type: u32, value: impl AsRef<[u8]>) -> Self {
        self.keys.push([&text(key)[..], &value_type.to_le_bytes(), value.as_ref()].concat());
        self
    }

    fn tensor(mut self, name: &str, dims: &[u64], ggml_type: u32, offset: u64) -> Self {
        let mut bytes = text(name);
        bytes.extend((dims.len() as u32).to_le_bytes());
        bytes.extend(dims.iter().flat_map(|dim| dim.to_le_bytes()));
        bytes.extend(ggml_type.to_le_bytes());
        bytes.extend(offset.to_le_bytes());
        self.tensors.push(bytes);
        self
    }

    fn data(mut self, data: impl AsRef<[u8]>) -> Self {
        self.data = data.as_ref().to_vec();
        self
    }

    fn bytes(&self) -> Vec<u8> {
        let mut bytes = head(self.version, self.tensors.len() as u64, self.keys.len() as u64);
        bytes.extend(self.keys.concat());
        bytes.extend(self.tensors.concat());
        if !self.data.is_empty() {
            bytes.resize(bytes.len().next_multiple_of(32), 0);
            bytes.extend(&self.data);
        }
        bytes
    }

    fn parse(&self) -> Result<Gguf> {
        parse(self.bytes())
    }
}

fn head(version: u32, n_tensors: u64, n_keys: u64) -> Vec<u8> {
    let mut bytes = b"GGUF".to_vec();
    bytes.extend(version.to_le_bytes());
    bytes.extend(n_tensors.to_le_bytes());
    bytes.extend(n_keys.to_le_bytes());
    bytes
}

fn text(bytes: impl AsRef<[u8]>) -> Vec<u8> {
    let bytes = bytes.as_ref();
    [&(bytes.len() as u64).to_le_bytes()[..], bytes].concat()
}

fn array(item_type: u32, len: u64, items: impl AsRef<[u8]>) -> Vec<u8> {
    [&item_type.to_le_bytes()[..], &len.to_le_bytes(), items.as_ref()].concat()
}

fn parse(bytes: Vec<u8>) -> Result<Gguf> {
    Gguf::parse(Mapping::memory("test", bytes))
}

#[track_caller]
fn assert_refused(result: Result<Gguf>, rule: &str) {
    match result {
        Err(e) if e.to_string().contains(rule) => {}
        other => panic!("wanted a refusal with {rule:?}, got {other:?}"),
    }
}

/// Keys of every type, and a tensor at the end.
fn small() -> Raw {
    let nested = [array(0, 2, [1, 2]), array(8, 1, text("x"))].concat();
    Raw::new()
        .key("u8", 0, [200])
        .key("i8", 1, [0xff])
        .key("u16", 2, 300u16.to_le_bytes())
        .key("i16", 3, (-300i16).to_le_bytes())
        .key("u32", 4, 70_000u32.to_le_bytes())
        .key("i32", 5, (-70_000i32).to_le_bytes())
        .key("f32", 6, 1.5f32.to_le_bytes())
        .key("bool", 7, [1])
        .key("string", 8, text("grüß"))
        .key("words", 9, array(8, 2, [text("a"), text("")].concat()))
        .key("u64", 10, (1u64 << 40).to_le_bytes())
        .key("i64", 11, (-1i64 << 40).to_le_bytes())
        .key("f64", 12, 0.25f64.to_le_bytes())
        .key("floats", 9, array(6, 2, [1f32.to_le_bytes(), 2f32.to_le_bytes()].concat()))
        .key("ids", 9, array(1, 3, [1, 0xfe, 3]))
        .key("nested", 9, array(9, 2, nested))
        .tensor("b", &[2, 3], F32, 32)
        .tensor("a", &[4], F32, 0)
        .data([&[7; 16][..], &[0; 16], &[8; 24]].concat())
}

#[test]
fn reads_every_type_of_metadata() {
    let gguf = small().parse().unwrap();
    assert_eq!(gguf.version(), 3);
    let value = |key| gguf.value(key).unwrap().clone();
    assert_eq!(value("u8"), Value::U8(200));
    assert_eq!(value("i8"), Value::I8(-1));
    assert_eq!(value("u16"), Value::U16(300));
    assert_eq!(value("i16"), Value::I16(-300));
    assert_eq!(value("u32"), Value::U32(70_000));
    assert_eq!(value("i32"), Value::I32(-70_000));
    assert_eq!(value("f32"), Value::F32(1.5));
    assert_eq!(value("bool"), Value::Bool(true));
    assert_eq!(value("string"), Value::String("grüß".to_owned()));
    assert_eq!(value("words"), Value::Array(Array::of_strings(["a", ""])));
    assert_eq!(value("u64"), Value::U64(1 << 40));
    assert_eq!(value("i64"), Value::I64(-1 << 40));
    assert_eq!(value("f64"), Value::F64(0.25));
    let Value::Array(nested) = value("nested") else { panic!() };
    let inner: Vec<Value> = nested.iter().map(Result::unwrap).collect();
    assert_eq!(inner[1], Value::Array(Array::of_strings(["x"])));
    assert_eq!(gguf.metadata().map(|(key, _)| key).last(), Some("nested"));
}

#[test]
fn typed_reads_take_what_fits_and_name_what_does_not() {
    let gguf = small().parse().unwrap();
    assert_eq!(gguf.str("string").unwrap(), "grüß");
    assert_eq!(gguf.u32("u8").unwrap(), 200);
    assert_eq!(gguf.u32("u32").unwrap(), 70_000);
    assert_eq!(gguf.f32("f64").unwrap(), 0.25);
    assert_eq!(gguf.opt_bool("bool").unwrap(), Some(true));
    assert_eq!(gguf.strings("words").unwrap(), ["a", ""]);
    assert_eq!(gguf.opt_f32s("floats").unwrap().unwrap(), [1.0, 2.0]);
    assert_eq!(gguf.opt_i32s("ids").unwrap().unwrap(), [1, -2, 3]);
    assert_eq!(gguf.opt_u32("none").unwrap(), None);
    assert_eq!(gguf.opt_strings("none").unwrap(), None);
    assert!(matches!(gguf.u32("none"), Err(Error::MissingKey { key, .. }) if key == "none"));
    for key in ["i32", "u64", "f32", "string", "ids"] {
        assert!(matches!(gguf.u32(key), Err(Error::BadKey { key: got, .. }) if got == key));
    }
    let err = gguf.strings("ids").unwrap_err().to_string();
    assert!(err.starts_with("test: the key `ids` is an array of 3 i8, not an array of strings; "), "{err}");
    assert!(gguf.opt_f32s("nested").is_err());
    assert!(gguf.f32("u32").is_err());
    assert!(gguf.str("words").is_err());
}

#[test]
fn reads_both_versions_and_places_tensors() {
    for version in [2, 3] {
        let gguf = Raw { version, ..small() }.parse().unwrap();
        assert_eq!(gguf.tensors().map(|t| t.name.as_str()).collect::<Vec<_>>(), ["b", "a"]);
        let b = gguf.tensor("b").unwrap();
        assert_eq!((b.cols(), b.rows(), b.n_elements()), (2, 3, 6));
        assert_eq!(b.ggml_type.dense(), Some(DenseFormat::F32));
        assert_eq!(b.bytes().unwrap()[..], [8; 24]);
        let a = gguf.tensor("a").unwrap();
        assert_eq!((a.cols(), a.rows()), (4, 1));
        assert_eq!(a.bytes().unwrap()[..], [7; 16]);
        assert_eq!(a.offset() % 32, 0);
    }
}

#[test]
fn a_file_cut_anywhere_is_refused() {
    let whole = small().bytes();
    for len in 0..whole.len() {
        assert!(parse(whole[..len].to_vec()).is_err(), "cut to {len} of {} bytes", whole.len());
    }
}

#[test]
fn a_file_with_any_byte_changed_gives_an_answer() {
    let whole = small().bytes();
    for at in 0..whole.len() {
        for value in [0, 1, 0x7f, 0x80, 0xff] {
            let mut bytes = whole.clone();
            bytes[at] = value;
            let Ok(gguf) = parse(bytes) else { continue };
            for tensor in gguf.tensors() {
                assert!(tensor.bytes().map_or(0, |b| b.len()) <= whole.len());
            }
            for (key, value) in gguf.metadata() {
                assert!(!matches!(value, Value::Array(a) if a.iter().count() > whole.len()), "{key}");
            }
        }
    }
}

#[test]
fn other_formats_versions_and_byte_orders_are_refused_by_name() {
    assert_refused(parse(b"GGJT\x03\0\0\0".to_vec()), "does not begin with GGUF");
    assert_refused(Raw { version: 1, ..small() }.parse(), "version 1 is not read");
    assert_refused(Raw { version: 4, ..small() }.parse(), "version 4 is not read");
    assert_refused(Raw { version: 3u32.swap_bytes(), ..small() }.parse(), "big-endian");
}

#[test]
fn counts_beyond_the_file_are_refused() {
    for huge in [1 << 16, 1 << 40, u64::MAX] {
        assert_refused(parse(head(3, huge, 0)), "tensors are announced");
        assert_refused(parse(head(3, 0, huge)), "metadata keys are announced");
        for item_type in 0..13 {
            let raw = Raw::new().key("k", 9, array(item_type, huge, [0; 16]));
            assert_refused(raw.parse(), "array items are announced");
        }
        let raw = Raw::new().key("k", 8, huge.to_le_bytes());
        assert_refused(raw.parse(), "bytes of text are announced");
        let mut bytes = head(3, 0, 1);
        bytes.extend(huge.to_le_bytes());
        bytes.extend([0; 16]);
        assert_refused(parse(bytes), "bytes of text are announced");
    }
    // A file that is long enough does not justify more keys or longer names than any model has.
    let mut bytes = head(3, 0, 65_537);
    bytes.resize(13 * 65_537 + bytes.len(), 0);
    assert_refused(parse(bytes), "metadata keys are announced");
    assert_refused(Raw::new().key([b'k'; 65_536], 0, [0]).parse(), "bytes of text");
}

#[test]
fn nesting_is_capped() {
    let nested = |depth| (1..depth).fold(array(0, 1, [5]), |inner, _| array(9, 1, inner));
    assert!(Raw::new().key("k", 9, nested(4)).parse().is_ok());
    assert_refused(Raw::new().key("k", 9, nested(5)).parse(), "nested deeper than 4");
    assert_refused(Raw::new().key("k", 9, nested(1000)).parse(), "nested deeper than 4");
}

#[test]
fn text_must_be_utf8() {
    assert_refused(Raw::new().key([0xff], 0, [0]).parse(), "no UTF-8");
    assert_refused(Raw::new().key("k", 8, text([0xff])).parse(), "no UTF-8");
    // Arrays are looked into only when they are read.
    let gguf = Raw::new().key("k", 9, array(8, 2, [text("a"), text([0xff])].concat())).parse().unwrap();
    assert!(matches!(gguf.strings("k"), Err(Error::Malformed { .. })));
    let gguf = Raw::new().key("k", 9, array(7, 2, [1, 2])).parse().unwrap();
    let Some(Value::Array(truths)) = gguf.value("k") else { panic!() };
    assert!(matches!(&truths.iter().collect::<Vec<_>>()[..], [Ok(Value::Bool(true)), Err(_)]));
    assert_refused(Raw::new().key("k", 7, [2]).parse(), "no truth value");
    assert_refused(Raw::new().key("k", 13, [0; 8]).parse(), "13 is no type");
}

#[test]
fn names_that_occur_twice_are_refused() {
    assert_refused(Raw::new().key("k", 0, [1]).key("k", 0, [1]).parse(), "key `k` occurs twice");
    let raw = Raw::new().tensor("t", &[8], F32, 0).tensor("t", &[8], F32, 32).data([0; 64]);
    assert_refused(raw.parse(), "tensor `t` occurs twice");
}

#[test]
fn tensors_must_lie_apart_aligned_and_inside() {
    let two = |second: u64| {
        Raw::new().tensor("a", &[8], F32, 0).tensor("b", &[8], F32, second).data([0; 64]).parse()
    };
    assert!(two(32).is_ok());
    assert_refused(two(0), "needs 32 bytes as f32");
    assert_refused(two(16), "no multiple of 32");
    assert_refused(two(64), "needs 32 bytes as f32, but the next tensor or the end is 0 away");
    assert_refused(two(1 << 40), "behind the end");
    assert_refused(two(u64::MAX - 31), "behind the end");
    let overlapping = Raw::new().tensor("a", &[9], F32, 0).tensor("b", &[8], F32, 32).data([0; 64]);
    assert_refused(overlapping.parse(), "`a` needs 36 bytes");
}

#[test]
fn alignment_follows_the_metadata() {
    let with = |alignment: u32, offset: u64| {
        Raw::new()
            .key("general.alignment", 4, alignment.to_le_bytes())
            .tensor("a", &[1], F32, 0)
            .tensor("b", &[1], F32, offset)
            .data([0; 256])
            .parse()
    };
    let gguf = with(64, 128).unwrap();
    assert_eq!(gguf.tensor("b").unwrap().offset() % 64, 0);
    assert!(with(8, 8).is_ok());
    assert_refused(with(64, 32), "no multiple of 64");
    for alignment in [0, 3, 48] {
        assert_refused(with(alignment, 0), "no power of two");
    }
    assert_refused(with(1 << 31, 0), "behind the end");
    assert_refused(Raw::new().key("general.alignment", 8, text("32")).parse(), "`general.alignment`");
}

#[test]
fn impossible_dimensions_are_refused() {
    let with = |dims: &[u64]| Raw::new().tensor("t", dims, F32, 0).data([0; 64]).parse();
    assert!(with(&[2, 2, 2, 2]).is_ok());
    assert_refused(with(&[1, 1, 1, 1, 1]), "5 dimensions");
    for dims in [&[1 << 32, 1 << 32][..], &[1 << 60, 0], &[0]] {
        assert_refused(with(dims), "cannot have the dimensions");
    }
    assert_refused(with(&[1 << 62]), "cannot be stored as f32");
    assert_refused(Raw::new().tensor("t", &[128], 35, 0).data([0; 66]).parse(), "cannot be stored as tq2_0");
    // One element, without dimensions.
    assert_eq!(with(&[]).unwrap().tensor("t").unwrap().bytes().unwrap().len(), 4);
}

#[test]
fn i2_s_comes_with_or_without_padding() {
    let with = |len: usize| Raw::new().tensor("t", &[128, 1], I2_S, 0).data(vec![1; len]).parse();
    let len = |gguf: Gguf| gguf.tensor("t").unwrap().bytes().unwrap().len();
    assert_eq!(len(with(32 + 32).unwrap()), 64);
    assert_eq!(len(with(32 + 100).unwrap()), 64);
    assert_eq!(len(with(32 + 4).unwrap()), 36);
    assert_refused(with(32 + 3), "needs 36 bytes as i2_s");
    let ternary = with(64).unwrap().tensor("t").unwrap().ggml_type.ternary(I2sLayout::Block64);
    assert_eq!(ternary, Some(TernaryFormat::I2s(I2sLayout::Block64)));
}

#[test]
fn q2_0_in_groups_of_128_is_told_by_its_length() {
    // Groups of 128 take 34 bytes for 128 elements, groups of 64 take 36.
    let with = |len: usize| Raw::new().tensor("t", &[128, 16], 42, 0).data(vec![0; len]).parse();
    assert_eq!(with(16 * 36).unwrap().tensor("t").unwrap().bytes().unwrap().len(), 16 * 36);
    assert_refused(with(16 * 34), "groups of 128");
}

#[test]
fn types_that_are_not_read_are_listed_and_refused_by_name() {
    let refusal = |ggml_type: u32, len: usize| {
        let gguf = Raw::new().tensor("t", &[256, 4], ggml_type, 0).data(vec![0; len]).parse().unwrap();
        let tensor = gguf.tensor("t").unwrap();
        assert_eq!((tensor.ggml_type, tensor.ggml_type.id()), (GgmlType::Other(ggml_type), ggml_type));
        tensor.bytes().unwrap_err().to_string()
    };
    assert!(refusal(12, 576).contains("type q4_k (id 12)"));
    assert!(refusal(99, 1).contains("type unknown (id 99)"));
    for (ggml_type, len, name) in [(38, 288, "tl1"), (39, 288, "tl2")] {
        let message = refusal(ggml_type, len);
        assert!(message.contains(name) && message.contains("safetensors checkpoint to i2_s"), "{message}");
    }
    assert!(refusal(39, 1024 / 32 * 17).contains("type mxfp4 (id 39)"));
}

#[test]
fn type_numbers_round_trip() {
    for id in 0..64 {
        assert_eq!(GgmlType::from_id(id).id(), id);
    }
    for format in [TernaryFormat::Tq1_0, TernaryFormat::Tq2_0, TernaryFormat::Q2_0] {
        let ggml_type = GgmlType::from_ternary(format).unwrap();
        assert_eq!(ggml_type.ternary(I2sLayout::default()), Some(format));
        assert_eq!(ggml_type.name(), format.name());
    }
    assert_eq!(GgmlType::from_ternary(TernaryFormat::HfU8), None);
    assert_eq!(GgmlType::from(DenseFormat::Q6K).id(), 14);
    assert_eq!(GgmlType::from_id(34), GgmlType::Tq1_0);
    assert_eq!(GgmlType::from_id(35), GgmlType::Tq2_0);
}

fn writer() -> GgufWriter {
    let mut writer = GgufWriter::new();
    for (key, value) in small().parse().unwrap().metadata() {
        writer.set(key, value.clone());
    }
    writer.add_tensor("norm.weight", &[3], GgmlType::Dense(DenseFormat::F32));
    writer.add_tensor("q.weight", &[128, 2], GgmlType::I2S);
    writer
}

fn write(writer: GgufWriter, path: &Path, sizes: [usize; 2]) -> Result<()> {
    writer.write(path, |i, sink| (0..sizes[i]).try_for_each(|_| sink.write(&[i as u8 + 1])))
}

#[test]
fn what_is_written_is_read_back() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    write(writer(), &path, [12, 96]).unwrap();
    let bytes = fs::read(&path).unwrap();
    assert_eq!(bytes[..24], head(3, 2, 17));
    assert_eq!(bytes.len() % 32, 0);

    let gguf = Gguf::parse(Mapping::open(&path).unwrap()).unwrap();
    for (key, value) in small().parse().unwrap().metadata() {
        assert_eq!(gguf.value(key), Some(value), "{key}");
    }
    assert_eq!(gguf.u32("general.alignment").unwrap(), 32);
    assert_eq!(gguf.tensor("norm.weight").unwrap().bytes().unwrap()[..], [1; 12]);
    let q = gguf.tensor("q.weight").unwrap();
    assert_eq!((&q.dims[..], q.ggml_type), (&[128, 2][..], GgmlType::I2S));
    assert_eq!(q.bytes().unwrap()[..], [2; 96]);
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
}

#[test]
fn a_failed_write_leaves_the_old_file_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    fs::write(&path, "old").unwrap();
    for (sizes, culprit) in [([11, 96], "norm.weight"), ([13, 96], "norm.weight"), ([12, 36], "q.weight")] {
        let result = write(writer(), &path, sizes);
        assert!(matches!(result, Err(Error::BadTensor { name, .. }) if name == culprit));
    }
    for (name, dims, ggml_type) in [
        ("norm.weight", &[1][..], GgmlType::Dense(DenseFormat::F32)),
        ("t", &[100], GgmlType::Tq2_0),
        ("t", &[1], GgmlType::Other(12)),
        ("t", &[1; 5], GgmlType::Dense(DenseFormat::F32)),
        ("t", &[usize::MAX, 2], GgmlType::Dense(DenseFormat::F32)),
    ] {
        let mut writer = writer();
        writer.add_tensor(name, dims, ggml_type);
        let result = write(writer, &path, [12, 96]);
        assert!(matches!(result, Err(Error::BadTensor { name: got, .. }) if got == name));
    }
    assert_eq!(fs::read(&path).unwrap(), b"old");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
}
