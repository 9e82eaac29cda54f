//! The protocol buffers' wire format: what a few small messages need of it.

pub(crate) fn write_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

pub(crate) fn write_integer(out: &mut Vec<u8>, field: u64, value: u64) {
    write_varint(out, field << 3);
    write_varint(out, value);
}

pub(crate) fn write_double(out: &mut Vec<u8>, field: u64, value: f64) {
    write_varint(out, field << 3 | 1);
    out.extend(value.to_le_bytes());
}

pub(crate) fn write_bytes(out: &mut Vec<u8>, field: u64, bytes: &[u8]) {
    write_varint(out, field << 3 | 2);
    write_varint(out, bytes.len() as u64);
    out.extend(bytes);
}

/// A field's value; fixed-width numbers are told by their bytes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Field<'a> {
    Integer(u64),
    Bytes(&'a [u8]),
}

/// The fields of a message, in the order of its bytes; none after one that is damaged.
pub(crate) fn fields(message: &[u8]) -> impl Iterator<Item = (u64, Field<'_>)> {
    let mut rest = message;
    std::iter::from_fn(move || read_field(&mut rest))
}

/// The last field of this number that holds bytes, as a reader of a message that is not repeated takes it.
pub(crate) fn message(of: &[u8], number: u64) -> Option<&[u8]> {
    messages(of, number).last()
}

/// Every field of this number that holds bytes.
pub(crate) fn messages(of: &[u8], number: u64) -> impl Iterator<Item = &[u8]> {
    fields(of).filter_map(move |(found, field)| match field {
        Field::Bytes(bytes) if found == number => Some(bytes),
        _ => None,
    })
}

/// Repeated integers, packed or one by one.
pub(crate) fn integers(of: &[u8], number: u64) -> Vec<u64> {
    let mut values = Vec::new();
    for (_, field) in fields(of).filter(|(found, _)| *found == number) {
        match field {
            Field::Integer(value) => values.push(value),
            Field::Bytes(mut packed) => values.extend(std::iter::from_fn(|| read_varint(&mut packed))),
        }
    }
    values
}

fn read_field<'a>(rest: &mut &'a [u8]) -> Option<(u64, Field<'a>)> {
    let tag = read_varint(rest)?;
    let field = match tag & 7 {
        0 => Field::Integer(read_varint(rest)?),
        1 => Field::Bytes(take(rest, 8)?),
        2 => {
            let len = read_varint(rest)?;
            Field::Bytes(take(rest, usize::try_from(len).ok()?)?)
        }
        5 => Field::Bytes(take(rest, 4)?),
        _ => return None,
    };
    Some((tag >> 3, field))
}

fn read_varint(rest: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (&byte, after) = rest.split_first()?;
        *rest = after;
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Some(value);
        }
    }
    None
}

fn take<'a>(rest: &mut &'a [u8], len: usize) -> Option<&'a [u8]> {
    let (taken, after) = rest.split_at_checked(len)?;
    *rest = after;
    Some(taken)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let mut bytes = Vec::new();
        write_integer(&mut bytes, 1, u64::MAX);
        write_bytes(&mut bytes, 300, b"text");
        write_double(&mut bytes, 4, 0.5);
        let read: Vec<_> = fields(&bytes).collect();
        let half = 0.5_f64.to_le_bytes();
        let expected =
            [(1, Field::Integer(u64::MAX)), (300, Field::Bytes(b"text")), (4, Field::Bytes(&half))];
        assert_eq!(read, expected);
        for len in 0..bytes.len() {
            assert!(fields(&bytes[..len]).count() < 3, "{len}");
        }
    }

    #[test]
    fn integers_are_read_packed_or_not() {
        let packed = [0x12, 3, 1, 0xac, 2];
        let single = [0x10, 1, 0x10, 0xac, 2];
        assert_eq!(integers(&packed, 2), [1, 300]);
        assert_eq!(integers(&single, 2), [1, 300]);
    }

    #[test]
    fn endless_numbers_and_lengths_end_the_reading() {
        assert_eq!(fields(&[0xff; 20]).count(), 0);
        assert_eq!(fields(&[0x0a, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1]).count(), 0);
    }
}
