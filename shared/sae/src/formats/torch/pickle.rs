//! The pickle of a torch state dict, read without executing anything.
//!
//! A pickle is a program for a stack machine, and Python's own machine calls whatever function the program names. This one knows
//! the dozen instructions that `torch.save` writes for a dictionary of tensors, and the names of torch's own tensors: a
//! storage, and the function that makes a tensor of one. Any other name is an error that tells it.
//!
//! Values lie in one list and refer to each other by their places in it. So a value that stands in many places is there once, and
//! no depth of nesting takes depth of the call stack. An instruction makes one value at most, so that memory follows the length of
//! the pickle, which is limited.

use std::collections::{BTreeMap, HashMap};

use crate::error::TorchError;
use crate::formats::numbers::Element;

/// Bytes of a pickle. That of an autoencoder has one or two thousand: the numbers are elsewhere.
const LONGEST: usize = 1 << 20;
/// Bytes of a name, of a tensor or of a storage.
const LONGEST_NAME: usize = 255;
/// Dimensions of a tensor.
const MOST_DIMENSIONS: usize = 8;

/// A tensor as the pickle tells of it: a part of a storage.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Tensor {
    pub(super) storage: Storage,
    /// Where in the storage the first number is.
    pub(super) offset: usize,
    pub(super) shape: Vec<usize>,
    /// Numbers between neighbours of each dimension.
    pub(super) strides: Vec<usize>,
}

/// A row of numbers in a file of its own.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Storage {
    /// The file's name in the archive.
    pub(super) key: String,
    pub(super) element: Element,
}

/// The tensors of the state dict that the pickle `bytes` is. Entries that are no tensors are left out.
pub(super) fn tensors(bytes: &[u8]) -> Result<BTreeMap<String, Tensor>, TorchError> {
    if bytes.len() > LONGEST {
        return Err(TorchError::LongPickle { length: bytes.len(), limit: LONGEST });
    }
    let mut machine = Machine { bytes, ..Machine::default() };
    let top = machine.run()?;
    let Value::Dictionary(entries) = &machine.values[top] else {
        return Err(TorchError::NoStateDict { found: machine.values[top].kind() });
    };
    let named =
        entries.iter().filter_map(|(name, value)| match (&machine.values[*name], &machine.values[*value]) {
            (Value::Text(name), Value::Tensor(tensor)) if name.len() <= LONGEST_NAME => {
                Some((name.clone(), tensor.clone()))
            }
            _ => None,
        });
    Ok(named.collect())
}

/// The place of a value in the list.
type Place = usize;

#[derive(Debug)]
enum Value {
    None,
    Bool,
    Integer(i64),
    Float,
    Text(String),
    Tuple(Vec<Place>),
    List,
    Dictionary(Vec<(Place, Place)>),
    Global(Global),
    Storage(Storage),
    Tensor(Tensor),
}

impl Value {
    fn kind(&self) -> &'static str {
        match self {
            Value::None => "None",
            Value::Bool => "a truth value",
            Value::Integer(_) => "an integer",
            Value::Float => "a float",
            Value::Text(_) => "a text",
            Value::Tuple(_) => "a tuple",
            Value::List => "a list",
            Value::Dictionary(_) => "a dictionary",
            Value::Global(_) => "a name",
            Value::Storage(_) => "a storage",
            Value::Tensor(_) => "a tensor",
        }
    }
}

/// What a pickle may name.
#[derive(Debug, Clone, Copy)]
enum Global {
    OrderedDict,
    RebuildTensor,
    RebuildParameter,
    Storage(Element),
}

impl Global {
    fn named(module: &str, name: &str) -> Option<Global> {
        Some(match (module, name) {
            ("collections", "OrderedDict") => Global::OrderedDict,
            ("torch._utils", "_rebuild_tensor_v2") => Global::RebuildTensor,
            ("torch._utils", "_rebuild_parameter") => Global::RebuildParameter,
            ("torch", "DoubleStorage") => Global::Storage(Element::F64),
            ("torch", "FloatStorage") => Global::Storage(Element::F32),
            ("torch", "HalfStorage") => Global::Storage(Element::F16),
            ("torch", "BFloat16Storage") => Global::Storage(Element::Bf16),
            ("torch", "LongStorage") => Global::Storage(Element::I64),
            ("torch", "IntStorage") => Global::Storage(Element::I32),
            ("torch", "ShortStorage") => Global::Storage(Element::I16),
            ("torch", "CharStorage") => Global::Storage(Element::I8),
            ("torch", "ByteStorage") => Global::Storage(Element::U8),
            ("torch", "BoolStorage") => Global::Storage(Element::Bool),
            _ => return None,
        })
    }
}

#[derive(Debug, Default)]
struct Machine<'a> {
    bytes: &'a [u8],
    at: usize,
    values: Vec<Value>,
    stack: Vec<Place>,
    /// Heights of the stack that instructions go back to.
    marks: Vec<usize>,
    memo: HashMap<u32, Place>,
}

impl Machine<'_> {
    /// Follows the instructions to the last; the value that is left.
    fn run(&mut self) -> Result<Place, TorchError> {
        loop {
            let at = self.at;
            match self.byte()? {
                // PROTO, FRAME
                0x80 => drop(self.byte()?),
                0x95 => drop(self.take(8)?),
                // MARK, POP_MARK, POP, STOP
                b'(' => self.marks.push(self.stack.len()),
                b'1' => drop(self.since_mark()?),
                b'0' => drop(self.pop()?),
                b'.' => return self.pop(),
                // NONE, NEWTRUE, NEWFALSE, BINFLOAT
                b'N' => self.push(Value::None),
                0x88 | 0x89 => self.push(Value::Bool),
                b'G' => {
                    self.take(8)?;
                    self.push(Value::Float);
                }
                // BININT, BININT1, BININT2, LONG1
                b'J' => {
                    let number = i32::from_le_bytes(self.array()?);
                    self.push(Value::Integer(number.into()));
                }
                b'K' => {
                    let number = self.byte()?;
                    self.push(Value::Integer(number.into()));
                }
                b'M' => {
                    let number = u16::from_le_bytes(self.array()?);
                    self.push(Value::Integer(number.into()));
                }
                0x8a => self.long()?,
                // BINUNICODE, SHORT_BINUNICODE
                b'X' => {
                    let length = u32::from_le_bytes(self.array()?);
                    self.text(length as usize)?;
                }
                0x8c => {
                    let length = self.byte()?;
                    self.text(length.into())?;
                }
                // EMPTY_TUPLE, TUPLE, TUPLE1, TUPLE2, TUPLE3
                b')' => self.push(Value::Tuple(Vec::new())),
                b't' => {
                    let members = self.since_mark()?;
                    self.push(Value::Tuple(members));
                }
                members @ 0x85..=0x87 => self.short_tuple(members - 0x84)?,
                // EMPTY_LIST, APPEND, APPENDS
                b']' => self.push(Value::List),
                b'a' => drop(self.pop()?),
                b'e' => drop(self.since_mark()?),
                // EMPTY_DICT, SETITEM, SETITEMS, BUILD
                b'}' => self.push(Value::Dictionary(Vec::new())),
                b's' => {
                    let (value, key) = (self.pop()?, self.pop()?);
                    self.set(vec![key, value])?;
                }
                b'u' => {
                    let members = self.since_mark()?;
                    self.set(members)?;
                }
                // What a dictionary has beside its entries, torch's `_metadata`.
                b'b' => drop(self.pop()?),
                // BINPUT, LONG_BINPUT, MEMOIZE, BINGET, LONG_BINGET
                b'q' => {
                    let number = self.byte()?;
                    self.memoize(number.into())?;
                }
                b'r' => {
                    let number = u32::from_le_bytes(self.array()?);
                    self.memoize(number)?;
                }
                0x94 => self.memoize(self.memo.len() as u32)?,
                b'h' => {
                    let number = self.byte()?;
                    self.recall(number.into())?;
                }
                b'j' => {
                    let number = u32::from_le_bytes(self.array()?);
                    self.recall(number)?;
                }
                // GLOBAL, STACK_GLOBAL, REDUCE, BINPERSID
                b'c' => {
                    let (module, name) = (self.line()?, self.line()?);
                    self.global(&module, &name)?;
                }
                0x93 => {
                    let (name, module) = (self.pop()?, self.pop()?);
                    let (module, name) = (self.as_text(module)?.to_owned(), self.as_text(name)?.to_owned());
                    self.global(&module, &name)?;
                }
                b'R' => self.reduce()?,
                b'Q' => self.persistent()?,
                code => return Err(TorchError::Instruction { code, at }),
            }
        }
    }

    fn take(&mut self, count: usize) -> Result<&[u8], TorchError> {
        let taken = self.bytes[self.at..].get(..count).ok_or(TorchError::ShortPickle)?;
        self.at += count;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], TorchError> {
        Ok(self.take(N)?.try_into().expect("as many as were asked for"))
    }

    fn byte(&mut self) -> Result<u8, TorchError> {
        Ok(self.array::<1>()?[0])
    }

    fn line(&mut self) -> Result<String, TorchError> {
        let rest = &self.bytes[self.at..];
        let length = rest.iter().position(|byte| *byte == b'\n').ok_or(TorchError::ShortPickle)?;
        let line = String::from_utf8_lossy(&rest[..length]).into_owned();
        self.at += length + 1;
        Ok(line)
    }

    fn push(&mut self, value: Value) {
        self.stack.push(self.values.len());
        self.values.push(value);
    }

    fn pop(&mut self) -> Result<Place, TorchError> {
        let floor = self.marks.last().copied().unwrap_or(0);
        let above = self.stack.len() > floor;
        self.stack.pop().filter(|_| above).ok_or(TorchError::EmptyStack { at: self.at })
    }

    fn since_mark(&mut self) -> Result<Vec<Place>, TorchError> {
        let mark = self.marks.pop().ok_or(TorchError::EmptyStack { at: self.at })?;
        Ok(self.stack.split_off(mark))
    }

    /// Of up to eight bytes: nothing in a state dict is larger.
    fn long(&mut self) -> Result<(), TorchError> {
        let (at, length) = (self.at, usize::from(self.byte()?));
        let bytes = self.take(length)?;
        if length > 8 {
            return Err(TorchError::Value { expected: "an integer of 64 bits", at });
        }
        let negative = bytes.last().is_some_and(|byte| byte & 0x80 != 0);
        let mut number = [if negative { 0xff } else { 0 }; 8];
        number[..length].copy_from_slice(bytes);
        self.push(Value::Integer(i64::from_le_bytes(number)));
        Ok(())
    }

    fn text(&mut self, length: usize) -> Result<(), TorchError> {
        let text = String::from_utf8_lossy(self.take(length)?).into_owned();
        self.push(Value::Text(text));
        Ok(())
    }

    fn short_tuple(&mut self, members: u8) -> Result<(), TorchError> {
        let mut places = (0..members).map(|_| self.pop()).collect::<Result<Vec<_>, _>>()?;
        places.reverse();
        self.push(Value::Tuple(places));
        Ok(())
    }

    /// Keys and values by turns, into the dictionary that is on top of the stack.
    fn set(&mut self, members: Vec<Place>) -> Result<(), TorchError> {
        let at = self.at;
        let top = self.top()?;
        let Value::Dictionary(entries) = &mut self.values[top] else {
            return Err(TorchError::Value { expected: "a dictionary", at });
        };
        entries.extend(members.as_chunks().0.iter().map(|[key, value]| (*key, *value)));
        Ok(())
    }

    fn top(&self) -> Result<Place, TorchError> {
        self.stack.last().copied().ok_or(TorchError::EmptyStack { at: self.at })
    }

    fn memoize(&mut self, number: u32) -> Result<(), TorchError> {
        let top = self.top()?;
        self.memo.insert(number, top);
        Ok(())
    }

    fn recall(&mut self, number: u32) -> Result<(), TorchError> {
        let place = self.memo.get(&number).copied();
        self.stack.push(place.ok_or(TorchError::EmptyStack { at: self.at })?);
        Ok(())
    }

    fn global(&mut self, module: &str, name: &str) -> Result<(), TorchError> {
        let known = Global::named(module, name);
        let global = known.ok_or_else(|| TorchError::Global { name: format!("{module}.{name}") })?;
        self.push(Value::Global(global));
        Ok(())
    }

    /// What Python's machine does with any function, for the three that are known.
    fn reduce(&mut self) -> Result<(), TorchError> {
        let (arguments, function) = (self.pop()?, self.pop()?);
        let function = match &self.values[function] {
            Value::Global(global) => *global,
            _ => return Err(TorchError::Value { expected: "a function", at: self.at }),
        };
        let arguments = self.as_tuple(arguments)?;
        let made = match (function, arguments) {
            (Global::OrderedDict, []) => Value::Dictionary(Vec::new()),
            (Global::RebuildTensor, [storage, offset, shape, strides, ..]) => Value::Tensor(Tensor {
                storage: self.as_storage(*storage)?.clone(),
                offset: self.as_size(*offset)?,
                shape: self.as_sizes(*shape)?,
                strides: self.as_sizes(*strides)?,
            }),
            (Global::RebuildParameter, [tensor, ..]) => match &self.values[*tensor] {
                Value::Tensor(tensor) => Value::Tensor(tensor.clone()),
                _ => return Err(TorchError::Value { expected: "a tensor", at: self.at }),
            },
            _ => return Err(TorchError::Value { expected: "the arguments of a tensor", at: self.at }),
        };
        self.push(made);
        Ok(())
    }

    /// `("storage", type, key, device, numbers)`: what is not in the pickle itself.
    fn persistent(&mut self) -> Result<(), TorchError> {
        let place = self.pop()?;
        let [_, kind, key, ..] = self.as_tuple(place)? else {
            return Err(TorchError::Value { expected: "a storage", at: self.at });
        };
        let Value::Global(Global::Storage(element)) = self.values[*kind] else {
            return Err(TorchError::Value { expected: "the type of a storage", at: self.at });
        };
        let key = self.as_text(*key)?;
        if key.len() > LONGEST_NAME {
            return Err(TorchError::Value { expected: "the name of a storage", at: self.at });
        }
        let storage = Storage { key: key.to_owned(), element };
        self.push(Value::Storage(storage));
        Ok(())
    }

    fn as_text(&self, place: Place) -> Result<&str, TorchError> {
        match &self.values[place] {
            Value::Text(text) => Ok(text),
            _ => Err(TorchError::Value { expected: "a text", at: self.at }),
        }
    }

    fn as_tuple(&self, place: Place) -> Result<&[Place], TorchError> {
        match &self.values[place] {
            Value::Tuple(members) => Ok(members),
            _ => Err(TorchError::Value { expected: "a tuple", at: self.at }),
        }
    }

    fn as_storage(&self, place: Place) -> Result<&Storage, TorchError> {
        match &self.values[place] {
            Value::Storage(storage) => Ok(storage),
            _ => Err(TorchError::Value { expected: "a storage", at: self.at }),
        }
    }

    fn as_size(&self, place: Place) -> Result<usize, TorchError> {
        let size = match self.values[place] {
            Value::Integer(number) => usize::try_from(number).ok(),
            _ => None,
        };
        size.ok_or(TorchError::Value { expected: "a size", at: self.at })
    }

    fn as_sizes(&self, place: Place) -> Result<Vec<usize>, TorchError> {
        let members = self.as_tuple(place)?;
        if members.len() > MOST_DIMENSIONS {
            return Err(TorchError::Value { expected: "a shape of at most 8 dimensions", at: self.at });
        }
        members.iter().map(|member| self.as_size(*member)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `{"w": tensor}` as torch 2 writes it, a [2, 3] tensor of float32.
    fn sound() -> Vec<u8> {
        let mut pickle =
            b"\x80\x02}q\x00X\x01\x00\x00\x00wq\x01ctorch._utils\n_rebuild_tensor_v2\nq\x02((".to_vec();
        pickle.extend(b"X\x07\x00\x00\x00storageq\x03ctorch\nFloatStorage\nq\x04X\x01\x00\x00\x000q\x05");
        pickle.extend(b"X\x03\x00\x00\x00cpuq\x06K\x06tq\x07QK\x00K\x02K\x03\x86q\x08K\x03K\x01\x86q\x09");
        pickle.extend(b"\x89ccollections\nOrderedDict\nq\x0a)Rq\x0btq\x0cRq\x0ds.");
        pickle
    }

    fn told(pickle: &[u8]) -> String {
        tensors(pickle).unwrap_err().to_string()
    }

    #[test]
    fn a_state_dict_is_its_tensors() {
        let storage = Storage { key: "0".into(), element: Element::F32 };
        let tensor = Tensor { storage, offset: 0, shape: vec![2, 3], strides: vec![3, 1] };
        assert_eq!(tensors(&sound()).unwrap(), BTreeMap::from([("w".to_owned(), tensor)]));
    }

    #[test]
    fn a_pickle_cut_anywhere_is_an_error() {
        let sound = sound();
        for length in 0..sound.len() {
            told(&sound[..length]);
        }
    }

    #[test]
    fn a_function_that_is_not_torchs_is_named() {
        for pickle in [
            &b"\x80\x02cos\nsystem\nX\x02\x00\x00\x00id\x85R."[..],
            b"\x80\x04\x8c\x02os\x8c\x06system\x93)R.",
        ] {
            let told = told(pickle);
            assert!(told.contains("`os.system`") && told.contains("nothing was executed"), "{told}");
        }
        // By way of BUILD, INST and EXT codes, or of an object of a class.
        for pickle in
            [&b"(ios\nsystem\n."[..], b"\x82\x01.", b"(cbuiltins\neval\no.", b"ctorch\nload\n)\x81."]
        {
            told(pickle);
        }
    }

    #[test]
    fn a_name_is_no_function_where_a_storage_stands() {
        let pickle = b"ctorch\nFloatStorage\n)R.";
        assert!(told(pickle).contains("the arguments of a tensor"));
    }

    #[test]
    fn nesting_and_repetition_take_no_more_than_their_bytes() {
        let nested = [vec![b')'; 1], vec![0x85; LONGEST - 2], vec![b'.']].concat();
        assert!(told(&nested).contains("a tuple"));
        // Ten values, each twice the one before: 2^20000 in Python's terms.
        let mut doubled = b")".to_vec();
        for _ in 0..20_000 {
            doubled.extend(b"q\x00h\x00\x86");
        }
        doubled.push(b'.');
        assert!(told(&doubled).contains("a tuple"));
        let marks = vec![b'('; LONGEST];
        assert!(matches!(tensors(&marks), Err(TorchError::ShortPickle)));
        assert!(told(&vec![b'('; LONGEST + 1]).contains("1048577"));
    }

    #[test]
    fn sizes_that_are_none_are_refused() {
        let sound = sound();
        let at = sound.windows(2).position(|bytes| bytes == b"K\x02").unwrap();
        let with = |size: &[u8]| [&sound[..at], size, &sound[at + 2..]].concat();
        assert!(told(&with(b"J\xff\xff\xff\xff")).contains("a size"));
        assert!(told(&with(b"N")).contains("a size"));
        assert!(told(&with(b"\x8a\x09123456789")).contains("64 bits"));
        assert_eq!(tensors(&with(b"\x8a\x02\x00\x01")).unwrap()["w"].shape, [256, 3]);
    }
}
