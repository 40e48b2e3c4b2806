use super::*;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

fn file(header: impl AsRef<[u8]>, data: &[u8]) -> Vec<u8> {
    let header = header.as_ref();
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header);
    bytes.extend(data);
    bytes
}

fn parse(bytes: Vec<u8>) -> Result<SafeTensors> {
    SafeTensors::parse(Mapping::memory("test", bytes))
}

/// Two tensors, in the header in the opposite order of their data.
fn small() -> Vec<u8> {
    let header = r#"{"__metadata__":{"format":"pt"},
        "b":{"dtype":"BF16","shape":[1,2],"data_offsets":[3,7]},
        "a":{"dtype":"U8","shape":[3],"data_offsets":[0,3]}}"#;
    file(header, &[1, 2, 3, 4, 5, 6, 7])
}

#[track_caller]
fn assert_refused(bytes: Vec<u8>, rule: &str) {
    match parse(bytes) {
        Err(Error::Malformed { rule: got, .. }) if got.contains(rule) => {}
        other => panic!("wanted a refusal with {rule:?}, got {other:?}"),
    }
}

/// Refuses a header over seven bytes of data.
#[track_caller]
fn assert_header_refused(header: &str, rule: &str) {
    assert_refused(file(header, &[0; 7]), rule);
}

#[test]
fn reads_names_types_shapes_and_bytes() {
    let tensors = parse(small()).unwrap();
    assert_eq!(tensors.tensors().map(|t| t.name.as_str()).collect::<Vec<_>>(), ["b", "a"]);
    let b = tensors.get("b").unwrap();
    assert_eq!((b.dtype, &b.shape[..], &b.bytes[..]), (Dtype::BF16, &[1, 2][..], &[4, 5, 6, 7][..]));
    let a = tensors.get("a").unwrap();
    assert_eq!((a.dtype, &a.shape[..], &a.bytes[..]), (Dtype::U8, &[3][..], &[1, 2, 3][..]));
    assert!(tensors.get("c").is_none());
    assert!(tensors.get("__metadata__").is_none());
}

#[test]
fn reads_scalars_empty_tensors_and_padded_headers() {
    let header = r#"{"s":{"dtype":"F32","shape":[],"data_offsets":[0,4]},
        "e":{"dtype":"F32","shape":[0,5],"data_offsets":[4,4]}}    "#;
    let tensors = parse(file(header, &[0; 4])).unwrap();
    assert_eq!(tensors.get("s").unwrap().bytes.len(), 4);
    assert_eq!(tensors.get("e").unwrap().bytes.len(), 0);
    assert_eq!(parse(file("{}", &[])).unwrap().tensors().len(), 0);
}

#[test]
fn every_dtype_is_known_by_its_name_and_size() {
    for dtype in Dtype::ALL {
        let n = 2 * dtype.element_bytes();
        let header = format!(r#"{{"t":{{"dtype":"{dtype}","shape":[2],"data_offsets":[0,{n}]}}}}"#);
        assert_eq!(parse(file(&header, &vec![0; n])).unwrap().get("t").unwrap().dtype, dtype);
    }
}

#[test]
fn a_file_cut_anywhere_is_refused() {
    let whole = small();
    for len in 0..whole.len() {
        assert!(parse(whole[..len].to_vec()).is_err(), "cut to {len} bytes");
    }
}

#[test]
fn lengths_beyond_the_file_are_refused_before_they_are_believed() {
    for len in [8, 1 << 40, u64::MAX] {
        let mut bytes = len.to_le_bytes().to_vec();
        bytes.extend([b'{'; 7]);
        assert_refused(bytes, "is announced");
    }
}

#[test]
fn layouts_that_break_a_rule_are_refused() {
    let tensor = |name, n, begin, end| {
        format!(r#""{name}":{{"dtype":"U8","shape":[{n}],"data_offsets":[{begin},{end}]}}"#)
    };
    let two = |a: String, b: String| format!("{{{a},{b}}}");
    assert_header_refused(&two(tensor("a", 4, 0, 4), tensor("b", 4, 3, 7)), "`b` overlaps");
    assert_header_refused(&two(tensor("a", 3, 0, 3), tensor("b", 3, 4, 7)), "`b` leaves a hole");
    assert_header_refused(&two(tensor("a", 6, 1, 7), tensor("b", 0, 7, 7)), "`a` leaves a hole");
    assert_header_refused(&two(tensor("a", 3, 0, 3), tensor("b", 3, 3, 6)), "1 bytes follow");
    assert_header_refused(&two(tensor("a", 3, 0, 3), tensor("b", 5, 3, 8)), "`b` ends at 8 of 7");
    assert_header_refused(&two(tensor("a", 7, 0, 7), tensor("b", 0, 7, 3)), "`b` ends at 3");
    assert_header_refused(&format!("{{{}}}", tensor("a", 6, 0, 7)), "`a` has 7 bytes for U8 [6]");
    assert_header_refused(&two(tensor("a", 3, 0, 3), tensor("a", 4, 3, 7)), "`a` occurs twice");
    let overflow = r#"{"a":{"dtype":"F64","shape":[4294967296,4294967296],"data_offsets":[0,7]}}"#;
    assert_header_refused(overflow, "`a` has 7 bytes");
}

#[test]
fn headers_that_are_no_header_are_refused() {
    let entry = r#"{"dtype":"U8","shape":[7],"data_offsets":[0,7]}"#;
    assert_header_refused("[]", "expected an object");
    assert_header_refused(r#"{"a":1}"#, "in the header");
    assert_header_refused(&entry.replace("U8", "U9").replace('{', r#"{"a":{"#), "unknown dtype `U9`");
    assert_header_refused(&format!(r#"{{"a":{}}}"#, entry.replace('7', "-7")), "in the header");
    assert_header_refused(&format!(r#"{{"a":{entry}}} x"#), "trailing characters");
    assert_header_refused(r#"{"__metadata__":{"a":1}}"#, "in the header");
    assert_header_refused(r#"{"__metadata__":{},"__metadata__":{}}"#, "`__metadata__` occurs twice");
    assert_header_refused(&format!(r#"{{"a":{{"x":{}"#, "[".repeat(100_000)), "EOF while parsing");
    assert_refused(file(b"{\"\xff\":1}", &[]), "invalid unicode");
}

#[test]
fn names_dimensions_and_counts_are_capped() {
    let tensor = |name: &str, shape: &str| {
        format!(r#""{name}":{{"dtype":"U8","shape":[{shape}],"data_offsets":[0,0]}}"#)
    };
    let many = |n: usize, padding: usize| {
        let all: Vec<String> = (0..n).map(|i| tensor(&i.to_string(), "0")).collect();
        file(format!("{{{}}}{}", all.join(","), " ".repeat(padding)), &[])
    };
    let one = |name: &str, shape: &str| file(format!("{{{}}}", tensor(name, shape)), &[]);
    assert!(parse(one(&"n".repeat(256), "0,1,1,1,1,1,1,1")).is_ok());
    assert_refused(one(&"n".repeat(257), "0"), "at most 256 bytes long");
    assert_refused(one("n", "0,1,1,1,1,1,1,1,1"), "at most 8 dimensions");
    assert_eq!(parse(many(128, 0)).unwrap().tensors().len(), 128);
    assert_refused(many(1000, 0), "tensors");
    assert_eq!(parse(many(1000, 1000 * 512)).unwrap().tensors().len(), 1000);
    assert_refused(many(65_537, 65_537 * 512), "at most 65536 tensors");
}

#[test]
fn errors_name_the_byte() {
    let header = "{\n\"a\": !}";
    match parse(file(header, &[])) {
        Err(Error::Malformed { offset, .. }) => {
            assert_eq!(offset as usize, 8 + header.find('!').unwrap() + 1)
        }
        other => panic!("{other:?}"),
    }
}

fn specs() -> [TensorSpec<'static>; 3] {
    [
        TensorSpec { name: "a", dtype: Dtype::U8, shape: &[3] },
        TensorSpec { name: "b", dtype: Dtype::F32, shape: &[1, 2] },
        TensorSpec { name: "c", dtype: Dtype::I64, shape: &[] },
    ]
}

fn write_small(path: &Path) -> Result<()> {
    let metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
    let sizes = [3, 8, 8];
    write(path, &metadata, &specs(), |i, sink| {
        for _ in 0..sizes[i] {
            sink.write(&[i as u8 + 1])?;
        }
        Ok(())
    })
}

#[test]
fn what_is_written_is_read_back() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    write_small(&path).unwrap();
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    assert_eq!(checkpoint.tensors().len(), 3);
    for (i, spec) in specs().iter().enumerate() {
        let tensor = checkpoint.tensor(spec.name).unwrap();
        assert_eq!((tensor.dtype, &tensor.shape[..]), (spec.dtype, spec.shape));
        assert!(tensor.bytes.iter().all(|&b| b == i as u8 + 1));
    }
    assert_eq!(checkpoint.tensor("a").unwrap().bytes.offset() % 32, 0);
    let written = String::from_utf8_lossy(&fs::read(&path).unwrap()).into_owned();
    assert!(written.contains(r#""__metadata__":{"format":"pt"}"#), "{written}");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
}

#[test]
fn a_failed_write_leaves_the_old_file_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    fs::write(&path, "old").unwrap();
    let empty = BTreeMap::new();
    let short = write(&path, &empty, &specs(), |_, sink| sink.write(&[0; 3]));
    assert!(matches!(short, Err(Error::BadTensor { name, .. }) if name == "b"));
    let long = write(&path, &empty, &specs(), |_, sink| sink.write(&[0; 4]));
    assert!(matches!(long, Err(Error::BadTensor { name, .. }) if name == "a"));
    let twice = [specs()[0], specs()[0]];
    assert!(matches!(write(&path, &empty, &twice, |_, _| Ok(())), Err(Error::BadTensor { .. })));
    assert_eq!(fs::read(&path).unwrap(), b"old");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
}

/// A folder whose index is `weight_map`, with the small file as its only shard `s.safetensors`.
fn sharded(weight_map: &str) -> (tempfile::TempDir, Result<Checkpoint>) {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("s.safetensors"), small()).unwrap();
    let index = format!(r#"{{"metadata":{{"total_size":7}},"weight_map":{weight_map}}}"#);
    fs::write(folder.path().join("model.safetensors.index.json"), index).unwrap();
    let checkpoint = Checkpoint::open(folder.path());
    (folder, checkpoint)
}

#[test]
fn shards_are_one_checkpoint() {
    let folder = tempfile::tempdir().unwrap();
    let one = |name: &str, byte| {
        let header = format!(r#"{{"{name}":{{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}}}"#);
        file(&header, &[byte])
    };
    fs::write(folder.path().join("1.safetensors"), one("x", 5)).unwrap();
    fs::write(folder.path().join("2.safetensors"), one("y", 6)).unwrap();
    let index = r#"{"weight_map":{"x":"1.safetensors","y":"2.safetensors"}}"#;
    fs::write(folder.path().join("model.safetensors.index.json"), index).unwrap();
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    assert_eq!(checkpoint.get("x").unwrap().bytes[..], [5]);
    assert_eq!(checkpoint.get("y").unwrap().bytes[..], [6]);
    assert!(matches!(checkpoint.tensor("z"), Err(Error::MissingTensor { name, .. }) if name == "z"));
}

#[test]
fn a_missing_shard_or_tensor_is_named() {
    let (_folder, missing_shard) = sharded(r#"{"a":"t.safetensors"}"#);
    assert!(matches!(missing_shard, Err(Error::Io { path, .. }) if path.ends_with("t.safetensors")));
    let (_folder, missing_tensor) = sharded(r#"{"a":"s.safetensors","z":"s.safetensors"}"#);
    let Err(Error::MissingTensor { path, name }) = missing_tensor else { panic!("{missing_tensor:?}") };
    assert!(path.ends_with("s.safetensors") && name == "z");
    let empty = tempfile::tempdir().unwrap();
    assert!(matches!(Checkpoint::open(empty.path()), Err(Error::Io { .. })));
}

#[test]
fn an_index_reaches_no_file_outside_its_folder() {
    for name in
        ["../s.safetensors", "/etc/passwd", "a/../s.safetensors", "..", ".", "", "s.safetensors/", "a\\\\s"]
    {
        let (_folder, checkpoint) = sharded(&format!(r#"{{"a":"{name}"}}"#));
        assert!(matches!(checkpoint, Err(Error::BadTensor { .. })), "{name:?} gave {checkpoint:?}");
    }
}
