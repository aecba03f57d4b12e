//! Arrow's numbers for kinds of messages, types of columns, and the fields of its tables (Message.fbs, Schema.fbs).

/// Kinds of messages.
pub(crate) const SCHEMA: u8 = 1;
pub(crate) const DICTIONARY_BATCH: u8 = 2;
pub(crate) const RECORD_BATCH: u8 = 3;

/// Version V5 of the metadata.
pub(crate) const VERSION: i16 = 4;

/// Types of columns.
pub(crate) mod kind {
    pub(crate) const NULL: u8 = 1;
    pub(crate) const INT: u8 = 2;
    pub(crate) const FLOATING_POINT: u8 = 3;
    pub(crate) const BINARY: u8 = 4;
    pub(crate) const UTF8: u8 = 5;
    pub(crate) const BOOL: u8 = 6;
    pub(crate) const DECIMAL: u8 = 7;
    pub(crate) const DURATION: u8 = 18;
    pub(crate) const INTERVAL: u8 = 11;
    pub(crate) const LIST: u8 = 12;
    pub(crate) const STRUCT: u8 = 13;
    pub(crate) const FIXED_SIZE_BINARY: u8 = 15;
    pub(crate) const FIXED_SIZE_LIST: u8 = 16;
    pub(crate) const MAP: u8 = 17;
    pub(crate) const LARGE_BINARY: u8 = 19;
    pub(crate) const LARGE_UTF8: u8 = 20;
    pub(crate) const LARGE_LIST: u8 = 21;
}

/// Precisions of floating-point numbers.
pub(crate) const HALF: i16 = 0;
pub(crate) const SINGLE: i16 = 1;

/// Fields of tables, by their places.
pub(crate) mod message {
    pub(crate) const VERSION: usize = 0;
    pub(crate) const HEADER_TYPE: usize = 1;
    pub(crate) const HEADER: usize = 2;
    pub(crate) const BODY_LENGTH: usize = 3;
}

pub(crate) mod schema {
    pub(crate) const FIELDS: usize = 1;
    pub(crate) const METADATA: usize = 2;
}

pub(crate) mod field {
    pub(crate) const NAME: usize = 0;
    pub(crate) const NULLABLE: usize = 1;
    pub(crate) const TYPE_TYPE: usize = 2;
    pub(crate) const TYPE: usize = 3;
    pub(crate) const DICTIONARY: usize = 4;
    pub(crate) const CHILDREN: usize = 5;
    pub(crate) const METADATA: usize = 6;
}

pub(crate) mod record_batch {
    pub(crate) const LENGTH: usize = 0;
    pub(crate) const NODES: usize = 1;
    pub(crate) const BUFFERS: usize = 2;
    pub(crate) const COMPRESSION: usize = 3;
}

/// Types have one or two fields of their own.
pub(crate) mod of_type {
    pub(crate) const INT_BITS: usize = 0;
    pub(crate) const INT_SIGNED: usize = 1;
    pub(crate) const PRECISION: usize = 0;
    pub(crate) const LIST_SIZE: usize = 0;
}
