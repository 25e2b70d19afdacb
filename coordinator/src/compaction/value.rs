//! What a row holds in one field.

/// A value on its way into a column.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Value {
    /// Nothing: only where the field is optional.
    Absent,
    /// A truth value.
    Bool(bool),
    /// An integer, for columns of every width; a narrower one keeps the lower bits.
    Int(i64),
    /// A number in single precision.
    Float(f32),
    /// A number in double precision.
    Double(f64),
    /// Text.
    Text(String),
    /// The items of a list, or the entries of a map.
    List(Vec<Value>),
    /// The fields of a struct, in the order of the schema.
    Group(Vec<Value>),
}

/// The fields of a row, in the order of its table's columns.
pub(super) type Row = Vec<Value>;

impl Value {
    /// All 64 bits, for a column of unsigned integers.
    pub(super) fn bits(value: u64) -> Self {
        Self::Int(value.cast_signed())
    }

    /// The entries of a map.
    pub(super) fn map<K: Into<Self>, V: Into<Self>>(
        entries: impl IntoIterator<Item = (K, V)>,
    ) -> Self {
        let entry = |(key, value): (K, V)| Self::Group(vec![key.into(), value.into()]);
        Self::List(entries.into_iter().map(entry).collect())
    }
}

/// Counts and ids. None is ever near the largest signed number; one that an actor made up is cut to it.
impl From<u64> for Value {
    fn from(value: u64) -> Self {
        Self::Int(i64::try_from(value).unwrap_or(i64::MAX))
    }
}

impl From<u32> for Value {
    fn from(value: u32) -> Self {
        Self::Int(value.into())
    }
}

impl From<u8> for Value {
    fn from(value: u8) -> Self {
        Self::Int(value.into())
    }
}

impl From<bool> for Value {
    fn from(value: bool) -> Self {
        Self::Bool(value)
    }
}

impl From<f32> for Value {
    fn from(value: f32) -> Self {
        Self::Float(value)
    }
}

impl From<f64> for Value {
    fn from(value: f64) -> Self {
        Self::Double(value)
    }
}

impl From<String> for Value {
    fn from(value: String) -> Self {
        Self::Text(value)
    }
}

impl From<&str> for Value {
    fn from(value: &str) -> Self {
        Self::Text(value.to_owned())
    }
}

impl<T: Into<Self>> From<Option<T>> for Value {
    fn from(value: Option<T>) -> Self {
        value.map_or(Self::Absent, Into::into)
    }
}

impl<T: Into<Self>> From<Vec<T>> for Value {
    fn from(values: Vec<T>) -> Self {
        Self::List(values.into_iter().map(Into::into).collect())
    }
}
