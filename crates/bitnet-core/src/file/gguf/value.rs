//! Metadata values. Arrays stay in their encoded form, so that a vocabulary costs nothing until it is read and
//! metadata moves from file to file unchanged.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use super::cursor::Cursor;
use crate::file::Mapping;
use crate::{Error, Result};

/// Arrays of arrays of arrays are as deep as any file goes; deeper ones are refused.
const MAX_ARRAY_DEPTH: usize = 4;

/// The type of a metadata value, by its number in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "a sentence could only repeat the name")]
pub enum ValueType {
    U8 = 0,
    I8 = 1,
    U16 = 2,
    I16 = 3,
    U32 = 4,
    I32 = 5,
    F32 = 6,
    Bool = 7,
    String = 8,
    Array = 9,
    U64 = 10,
    I64 = 11,
    F64 = 12,
}

/// A metadata value.
#[derive(Debug, Clone, PartialEq)]
#[expect(missing_docs, reason = "a sentence could only repeat the name")]
pub enum Value {
    U8(u8),
    I8(i8),
    U16(u16),
    I16(i16),
    U32(u32),
    I32(i32),
    F32(f32),
    Bool(bool),
    String(String),
    Array(Array),
    U64(u64),
    I64(i64),
    F64(f64),
}

/// An array of values of one type, encoded as in the file.
#[derive(Clone)]
pub struct Array {
    items: ValueType,
    len: usize,
    mapping: Arc<Mapping>,
    range: Range<usize>,
}

impl ValueType {
    const ALL: [ValueType; 13] = [
        ValueType::U8,
        ValueType::I8,
        ValueType::U16,
        ValueType::I16,
        ValueType::U32,
        ValueType::I32,
        ValueType::F32,
        ValueType::Bool,
        ValueType::String,
        ValueType::Array,
        ValueType::U64,
        ValueType::I64,
        ValueType::F64,
    ];

    /// The name, in lower case.
    pub const fn name(self) -> &'static str {
        match self {
            ValueType::U8 => "u8",
            ValueType::I8 => "i8",
            ValueType::U16 => "u16",
            ValueType::I16 => "i16",
            ValueType::U32 => "u32",
            ValueType::I32 => "i32",
            ValueType::F32 => "f32",
            ValueType::Bool => "bool",
            ValueType::String => "string",
            ValueType::Array => "array",
            ValueType::U64 => "u64",
            ValueType::I64 => "i64",
            ValueType::F64 => "f64",
        }
    }

    pub(super) fn read(cursor: &mut Cursor<'_>) -> Result<Self> {
        let start = cursor.clone();
        let id = cursor.u32()?;
        let found = Self::ALL.into_iter().find(|&t| t as u32 == id);
        found.ok_or_else(|| start.malformed(format!("{id} is no type of metadata")))
    }

    /// The fewest bytes that a value of the type takes; all of them, but for strings and arrays.
    const fn min_bytes(self) -> usize {
        match self {
            ValueType::U8 | ValueType::I8 | ValueType::Bool => 1,
            ValueType::U16 | ValueType::I16 => 2,
            ValueType::U32 | ValueType::I32 | ValueType::F32 => 4,
            ValueType::U64 | ValueType::I64 | ValueType::F64 | ValueType::String => 8,
            ValueType::Array => 12,
        }
    }
}

impl Value {
    /// The type.
    pub const fn value_type(&self) -> ValueType {
        match self {
            Value::U8(_) => ValueType::U8,
            Value::I8(_) => ValueType::I8,
            Value::U16(_) => ValueType::U16,
            Value::I16(_) => ValueType::I16,
            Value::U32(_) => ValueType::U32,
            Value::I32(_) => ValueType::I32,
            Value::F32(_) => ValueType::F32,
            Value::Bool(_) => ValueType::Bool,
            Value::String(_) => ValueType::String,
            Value::Array(_) => ValueType::Array,
            Value::U64(_) => ValueType::U64,
            Value::I64(_) => ValueType::I64,
            Value::F64(_) => ValueType::F64,
        }
    }

    /// The value of any integer type, where `T` holds it.
    pub fn integer<T: TryFrom<i128>>(&self) -> Option<T> {
        let wide = match *self {
            Value::U8(v) => i128::from(v),
            Value::I8(v) => i128::from(v),
            Value::U16(v) => i128::from(v),
            Value::I16(v) => i128::from(v),
            Value::U32(v) => i128::from(v),
            Value::I32(v) => i128::from(v),
            Value::U64(v) => i128::from(v),
            Value::I64(v) => i128::from(v),
            _ => return None,
        };
        T::try_from(wide).ok()
    }

    /// The value of either floating-point type.
    pub fn float(&self) -> Option<f32> {
        match *self {
            Value::F32(v) => Some(v),
            Value::F64(v) => Some(v as f32),
            _ => None,
        }
    }

    pub(super) fn read(cursor: &mut Cursor<'_>, value_type: ValueType) -> Result<Self> {
        Self::read_nested(cursor, value_type, 0)
    }

    /// Appends the value as a file has it, without its type.
    pub(super) fn write(&self, out: &mut Vec<u8>) {
        match self {
            Value::U8(v) => out.extend(v.to_le_bytes()),
            Value::I8(v) => out.extend(v.to_le_bytes()),
            Value::U16(v) => out.extend(v.to_le_bytes()),
            Value::I16(v) => out.extend(v.to_le_bytes()),
            Value::U32(v) => out.extend(v.to_le_bytes()),
            Value::I32(v) => out.extend(v.to_le_bytes()),
            Value::F32(v) => out.extend(v.to_le_bytes()),
            Value::Bool(v) => out.push(u8::from(*v)),
            Value::String(v) => write_string(v, out),
            Value::Array(v) => v.write(out),
            Value::U64(v) => out.extend(v.to_le_bytes()),
            Value::I64(v) => out.extend(v.to_le_bytes()),
            Value::F64(v) => out.extend(v.to_le_bytes()),
        }
    }

    fn read_nested(cursor: &mut Cursor<'_>, value_type: ValueType, depth: usize) -> Result<Self> {
        Ok(match value_type {
            ValueType::U8 => Value::U8(u8::from_le_bytes(cursor.array()?)),
            ValueType::I8 => Value::I8(i8::from_le_bytes(cursor.array()?)),
            ValueType::U16 => Value::U16(u16::from_le_bytes(cursor.array()?)),
            ValueType::I16 => Value::I16(i16::from_le_bytes(cursor.array()?)),
            ValueType::U32 => Value::U32(u32::from_le_bytes(cursor.array()?)),
            ValueType::I32 => Value::I32(i32::from_le_bytes(cursor.array()?)),
            ValueType::F32 => Value::F32(f32::from_le_bytes(cursor.array()?)),
            ValueType::Bool => {
                let start = cursor.clone();
                match cursor.array()? {
                    [0] => Value::Bool(false),
                    [1] => Value::Bool(true),
                    [byte] => return Err(start.malformed(format!("{byte} is no truth value"))),
                }
            }
            ValueType::String => Value::String(cursor.string(usize::MAX)?.to_owned()),
            ValueType::Array => Value::Array(Array::read(cursor, depth)?),
            ValueType::U64 => Value::U64(u64::from_le_bytes(cursor.array()?)),
            ValueType::I64 => Value::I64(i64::from_le_bytes(cursor.array()?)),
            ValueType::F64 => Value::F64(f64::from_le_bytes(cursor.array()?)),
        })
    }
}

impl Array {
    /// An array of strings.
    pub fn of_strings<S: AsRef<str>>(items: impl IntoIterator<Item = S>) -> Self {
        Self::encode(ValueType::String, items, |item, out| write_string(item.as_ref(), out))
    }

    /// An array of f32.
    pub fn of_f32s(items: &[f32]) -> Self {
        Self::encode(ValueType::F32, items, |item, out| out.extend(item.to_le_bytes()))
    }

    /// An array of i32.
    pub fn of_i32s(items: &[i32]) -> Self {
        Self::encode(ValueType::I32, items, |item, out| out.extend(item.to_le_bytes()))
    }

    /// The type of the items.
    pub const fn item_type(&self) -> ValueType {
        self.items
    }

    /// How many items there are.
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The items. Text that is no UTF-8 and truth values that are neither 0 nor 1 are errors here: opening a file
    /// does not look into its arrays.
    pub fn iter(&self) -> impl Iterator<Item = Result<Value>> + '_ {
        let mut cursor = self.cursor();
        // The depth was checked when the file was opened.
        (0..self.len).map(move |_| Value::read_nested(&mut cursor, self.items, 0))
    }

    /// The items of an array of strings, without copying them; `None` for other arrays.
    pub fn strings(&self) -> Option<impl ExactSizeIterator<Item = Result<&str>> + '_> {
        let mut cursor = self.cursor();
        (self.items == ValueType::String).then(|| (0..self.len).map(move |_| cursor.string(usize::MAX)))
    }

    fn cursor(&self) -> Cursor<'_> {
        Cursor::new(&self.mapping, self.range.start)
    }

    fn bytes(&self) -> &[u8] {
        &self.mapping.as_slice()[self.range.clone()]
    }

    fn encode<T>(
        items_type: ValueType,
        items: impl IntoIterator<Item = T>,
        mut write: impl FnMut(T, &mut Vec<u8>),
    ) -> Self {
        let mut bytes = Vec::new();
        let mut len = 0;
        for item in items {
            write(item, &mut bytes);
            len += 1;
        }
        let range = 0..bytes.len();
        Array { items: items_type, len, mapping: Mapping::memory("a metadata array", bytes), range }
    }

    /// Finds the end of an array, checking that every length in it stays inside the file.
    fn read(cursor: &mut Cursor<'_>, depth: usize) -> Result<Self> {
        if depth == MAX_ARRAY_DEPTH {
            return Err(cursor.malformed(format!("arrays are nested deeper than {MAX_ARRAY_DEPTH}")));
        }
        let items = ValueType::read(cursor)?;
        let len = cursor.count("array items", items.min_bytes(), usize::MAX)?;
        let start = cursor.at();
        match items {
            ValueType::String => {
                for _ in 0..len {
                    cursor.string_bytes(usize::MAX)?;
                }
            }
            ValueType::Array => {
                for _ in 0..len {
                    Array::read(cursor, depth + 1)?;
                }
            }
            // The product is bounded by the file's length: `count` divided that.
            _ => {
                cursor.take(len * items.min_bytes())?;
            }
        }
        Ok(Array { items, len, mapping: cursor.mapping().clone(), range: start..cursor.at() })
    }

    fn write(&self, out: &mut Vec<u8>) {
        out.extend((self.items as u32).to_le_bytes());
        out.extend((self.len as u64).to_le_bytes());
        out.extend(self.bytes());
    }
}

impl PartialEq for Array {
    fn eq(&self, other: &Self) -> bool {
        (self.items, self.len, self.bytes()) == (other.items, other.len, other.bytes())
    }
}

impl fmt::Debug for Array {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{}; {}]", self.items.name(), self.len)
    }
}

impl From<u32> for Value {
    fn from(value: u32) -> Self {
        Value::U32(value)
    }
}

impl From<f32> for Value {
    fn from(value: f32) -> Self {
        Value::F32(value)
    }
}

impl From<bool> for Value {
    fn from(value: bool) -> Self {
        Value::Bool(value)
    }
}

impl From<&str> for Value {
    fn from(value: &str) -> Self {
        Value::String(value.to_owned())
    }
}

impl From<Array> for Value {
    fn from(value: Array) -> Self {
        Value::Array(value)
    }
}

/// Appends a string as a file has it.
pub(super) fn write_string(text: &str, out: &mut Vec<u8>) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

/// The error of a value under `key` that is not what is `wanted`.
pub(super) fn mismatch(path: &std::path::Path, key: &str, value: &Value, wanted: &str) -> Error {
    let found = match value {
        Value::Array(array) => format!("an array of {} {}", array.len, array.items.name()),
        Value::String(text) => format!("a string of {} bytes", text.len()),
        scalar => format!("{scalar:?}"),
    };
    Error::bad_key(path, key, format!("is {found}, not {wanted}"))
}
