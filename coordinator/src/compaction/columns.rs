//! Rows to columns.
//!
//! Parquet has no nested values, only flat columns of leaves. Beside each leaf stand two levels: how
//! many of the optional and repeated fields above it are there (definition), and in which of the
//! repeated ones a new item begins (repetition). Melnik et al., "Dremel" (2010), section 4.
//!
//! A group of one field is its field: the list `[1, 2]` itself is what goes into
//! `group ids (LIST) { repeated group list { required int64 element } }`.

use std::io::Write;

use parquet::{
    basic::{Repetition, Type as Physical},
    column::writer::ColumnWriter,
    data_type::ByteArray,
    errors::{ParquetError, Result},
    file::writer::SerializedFileWriter,
    schema::types::{SchemaDescriptor, Type, TypePtr},
};

use super::value::{Row, Value};

/// Bytes of the two levels of a leaf.
const LEVEL_BYTES: usize = 4;

/// Rows that wait to become a row group.
#[derive(Debug)]
pub(super) struct Columns {
    schema: TypePtr,
    leaves: Vec<Leaf>,
    rows: usize,
}

/// One flat column.
#[derive(Debug)]
struct Leaf {
    name: String,
    values: Values,
    definition: Vec<i16>,
    repetition: Vec<i16>,
    bytes: usize,
}

#[derive(Debug)]
enum Values {
    Bool(Vec<bool>),
    Int32(Vec<i32>),
    Int64(Vec<i64>),
    Float(Vec<f32>),
    Double(Vec<f64>),
    Text(Vec<ByteArray>),
}

impl Columns {
    /// Empty columns of a table.
    pub(super) fn new(schema: TypePtr) -> Result<Self> {
        let columns = SchemaDescriptor::new(schema.clone());
        let leaf = |column: &parquet::schema::types::ColumnDescPtr| {
            Leaf::new(column.path().string(), column.physical_type())
        };
        let leaves = columns.columns().iter().map(leaf).collect::<Result<_>>()?;
        Ok(Self { schema, leaves, rows: 0 })
    }

    /// Adds a row. After an error the columns are of no use.
    pub(super) fn push(&mut self, row: Row) -> Result<()> {
        let fields = self.schema.get_fields();
        if fields.len() != row.len() {
            let (name, columns) = (self.schema.name(), fields.len());
            return Err(misfit(format!("{name} has {columns} columns, not {}", row.len())));
        }
        let mut shredder = Shredder { leaves: &mut self.leaves, next: 0 };
        for (field, value) in fields.iter().zip(row) {
            shredder.field(field, value, Levels::default())?;
        }
        self.rows += 1;
        Ok(())
    }

    /// Memory they take, about.
    pub(super) fn bytes(&self) -> usize {
        self.leaves.iter().map(|leaf| leaf.bytes).sum()
    }

    /// Writes the rows as a row group, and is empty again. No rows make no row group.
    pub(super) fn write<W: Write + Send>(
        &mut self,
        writer: &mut SerializedFileWriter<W>,
    ) -> Result<()> {
        if self.rows == 0 {
            return Ok(());
        }
        let mut group = writer.next_row_group()?;
        for leaf in &mut self.leaves {
            let Some(mut column) = group.next_column()? else {
                return Err(misfit(format!("there is no column for {}", leaf.name)));
            };
            leaf.write(column.untyped())?;
            column.close()?;
        }
        group.close()?;
        self.rows = 0;
        Ok(())
    }
}

/// Where a value stands: the fields above it that are there, the one that begins a new item, and how
/// many of those above it are repeated.
#[derive(Clone, Copy, Debug, Default)]
struct Levels {
    definition: i16,
    repetition: i16,
    depth: i16,
}

/// Takes a value apart, leaf by leaf, in the order of the schema.
struct Shredder<'a> {
    leaves: &'a mut [Leaf],
    next: usize,
}

impl Shredder<'_> {
    fn field(&mut self, field: &Type, value: Value, at: Levels) -> Result<()> {
        let defined = Levels { definition: at.definition + 1, ..at };
        match (field.get_basic_info().repetition(), value) {
            (Repetition::REQUIRED, value) => self.present(field, value, at),
            (Repetition::OPTIONAL, Value::Absent) => self.absent(field, at),
            (Repetition::OPTIONAL, value) => self.present(field, value, defined),
            (Repetition::REPEATED, Value::List(items)) if items.is_empty() => {
                self.absent(field, at)
            }
            (Repetition::REPEATED, Value::List(items)) => {
                let first = self.next;
                let mut inside = Levels { depth: at.depth + 1, ..defined };
                for item in items {
                    self.next = first;
                    self.present(field, item, inside)?;
                    inside.repetition = inside.depth;
                }
                Ok(())
            }
            (Repetition::REPEATED, value) => {
                Err(misfit(format!("{} is a list, not {value:?}", field.name())))
            }
        }
    }

    fn present(&mut self, field: &Type, value: Value, at: Levels) -> Result<()> {
        if field.is_primitive() {
            return self.leaf()?.push(value, at);
        }
        match (field.get_fields(), value) {
            ([only], value) => self.field(only, value, at),
            (fields, Value::Group(values)) if fields.len() == values.len() => {
                let mut all = fields.iter().zip(values);
                all.try_for_each(|(field, value)| self.field(field, value, at))
            }
            (fields, value) => {
                let (name, columns) = (field.name(), fields.len());
                Err(misfit(format!("{name} has {columns} fields, not those of {value:?}")))
            }
        }
    }

    fn absent(&mut self, field: &Type, at: Levels) -> Result<()> {
        if field.is_primitive() {
            self.leaf()?.push_level(at);
            return Ok(());
        }
        field.get_fields().iter().try_for_each(|field| self.absent(field, at))
    }

    fn leaf(&mut self) -> Result<&mut Leaf> {
        let leaf = self.leaves.get_mut(self.next);
        self.next += 1;
        leaf.ok_or_else(|| misfit("the schema has fewer columns than it names".into()))
    }
}

impl Leaf {
    fn new(name: String, physical: Physical) -> Result<Self> {
        let values = match physical {
            Physical::BOOLEAN => Values::Bool(Vec::new()),
            Physical::INT32 => Values::Int32(Vec::new()),
            Physical::INT64 => Values::Int64(Vec::new()),
            Physical::FLOAT => Values::Float(Vec::new()),
            Physical::DOUBLE => Values::Double(Vec::new()),
            Physical::BYTE_ARRAY => Values::Text(Vec::new()),
            Physical::INT96 | Physical::FIXED_LEN_BYTE_ARRAY => {
                return Err(misfit(format!("{name} is of a type that no table has")));
            }
        };
        Ok(Self { name, values, definition: Vec::new(), repetition: Vec::new(), bytes: 0 })
    }

    fn push(&mut self, value: Value, at: Levels) -> Result<()> {
        self.push_level(at);
        self.bytes += 8;
        match (&mut self.values, value) {
            (Values::Bool(values), Value::Bool(value)) => values.push(value),
            // The width of the column is the schema's affair.
            (Values::Int32(values), Value::Int(value)) => values.push(value as i32),
            (Values::Int64(values), Value::Int(value)) => values.push(value),
            (Values::Float(values), Value::Float(value)) => values.push(value),
            (Values::Double(values), Value::Double(value)) => values.push(value),
            (Values::Text(values), Value::Text(value)) => {
                self.bytes += size_of::<ByteArray>() + value.len();
                values.push(ByteArray::from(value.into_bytes()));
            }
            (_, value) => return Err(misfit(format!("{} cannot hold {value:?}", self.name))),
        }
        Ok(())
    }

    fn push_level(&mut self, at: Levels) {
        self.definition.push(at.definition);
        self.repetition.push(at.repetition);
        self.bytes += LEVEL_BYTES;
    }

    fn write(&mut self, column: &mut ColumnWriter<'_>) -> Result<()> {
        let (definition, repetition) = (Some(&*self.definition), Some(&*self.repetition));
        macro_rules! write_batch {
            ($column:ident, $values:ident) => {{
                $column.write_batch($values, definition, repetition)?;
                $values.clear();
            }};
        }
        match (&mut self.values, column) {
            (Values::Bool(values), ColumnWriter::BoolColumnWriter(column)) => {
                write_batch!(column, values);
            }
            (Values::Int32(values), ColumnWriter::Int32ColumnWriter(column)) => {
                write_batch!(column, values);
            }
            (Values::Int64(values), ColumnWriter::Int64ColumnWriter(column)) => {
                write_batch!(column, values);
            }
            (Values::Float(values), ColumnWriter::FloatColumnWriter(column)) => {
                write_batch!(column, values);
            }
            (Values::Double(values), ColumnWriter::DoubleColumnWriter(column)) => {
                write_batch!(column, values);
            }
            (Values::Text(values), ColumnWriter::ByteArrayColumnWriter(column)) => {
                write_batch!(column, values);
            }
            _ => return Err(misfit(format!("{} is of another type in the file", self.name))),
        }
        self.definition.clear();
        self.repetition.clear();
        self.bytes = 0;
        Ok(())
    }
}

/// A row that is not one of its table: a bug that the tests of every table rule out.
fn misfit(what: String) -> ParquetError {
    ParquetError::General(what)
}
