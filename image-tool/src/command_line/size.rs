//! Parsing sizes (`1.5G`) and numbers.

/// QEMU's limit for a disk: 63 bits, rounded down to gibibytes.
pub(crate) const MAX_DISK: u64 = i64::MAX.unsigned_abs() >> 30 << 30;

/// Why a size is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SizeError {
    /// It is not a size.
    Invalid,
    /// It is negative, or needs more than 64 bits.
    OutOfRange,
}

/// Parses a size: a decimal number, with a fraction if a suffix other than `b` follows, or a hexadecimal number without
/// suffix. Suffixes are powers of 1024, in either case.
pub(crate) fn parse(text: &str) -> Result<u64, SizeError> {
    let text = text.trim_start_matches([' ', '\t', '\n', '\r', '\x0b', '\x0c']);
    let (negative, text) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    if negative && !text.bytes().all(|b| b.is_ascii_digit()) {
        return Err(SizeError::Invalid);
    }
    let value = parse_unsigned(text)?;
    if negative {
        return Err(SizeError::OutOfRange);
    }
    Ok(value)
}

/// Parses a number as C does: `16`, `0x10` and `020` are equal.
pub(crate) fn integer(text: &str) -> Result<u64, SizeError> {
    let text = text.strip_prefix('+').unwrap_or(text);
    let hexadecimal = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X"));
    let (digits, radix) = match hexadecimal {
        Some(digits) => (digits, 16),
        None if text.starts_with('0') => (text, 8),
        None => (text, 10),
    };
    // from_str_radix would accept a second sign.
    if digits.starts_with('+') {
        return Err(SizeError::Invalid);
    }
    u64::from_str_radix(digits, radix).map_err(|error| match error.kind() {
        std::num::IntErrorKind::PosOverflow => SizeError::OutOfRange,
        _ => SizeError::Invalid,
    })
}

fn parse_unsigned(text: &str) -> Result<u64, SizeError> {
    if let Some(digits) = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(SizeError::Invalid);
        }
        return u64::from_str_radix(digits, 16).map_err(|_| SizeError::OutOfRange);
    }
    let whole_end = text.bytes().take_while(u8::is_ascii_digit).count();
    let (whole, rest) = text.split_at(whole_end);
    let (fraction, suffix) = match rest.strip_prefix('.') {
        Some(rest) => rest.split_at(rest.bytes().take_while(u8::is_ascii_digit).count()),
        None => ("", rest),
    };
    if whole.is_empty() && fraction.is_empty() {
        return Err(SizeError::Invalid);
    }
    let shift = suffix_shift(suffix)?;
    let fraction_bytes = fraction_of(fraction, shift)?;
    let whole = match whole {
        "" => 0,
        // As in QEMU, a number that is too long is out of range only without a suffix.
        digits => digits.parse::<u64>().map_err(|_| match rest {
            "" => SizeError::OutOfRange,
            _ => SizeError::Invalid,
        })?,
    };
    let bytes = whole
        .checked_mul(1u64 << shift)
        .ok_or(SizeError::OutOfRange)?;
    bytes
        .checked_add(fraction_bytes)
        .ok_or(SizeError::OutOfRange)
}

fn suffix_shift(suffix: &str) -> Result<u32, SizeError> {
    let mut bytes = suffix.bytes();
    let shift = match bytes.next().map(|b| b.to_ascii_lowercase()) {
        None | Some(b'b') => 0,
        Some(b'k') => 10,
        Some(b'm') => 20,
        Some(b'g') => 30,
        Some(b't') => 40,
        Some(b'p') => 50,
        Some(b'e') => 60,
        Some(_) => return Err(SizeError::Invalid),
    };
    if bytes.next().is_some() {
        return Err(SizeError::Invalid);
    }
    Ok(shift)
}

/// The fraction of the unit, rounded to bytes.
fn fraction_of(digits: &str, shift: u32) -> Result<u64, SizeError> {
    let significant = digits.trim_end_matches('0');
    if significant.is_empty() {
        return Ok(0);
    }
    if shift == 0 {
        return Err(SizeError::Invalid);
    }
    let fraction: f64 = format!("0.{significant}")
        .parse()
        .map_err(|_| SizeError::Invalid)?;
    Ok((fraction * (1u64 << shift) as f64 + 0.5) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn suffixes_are_powers_of_1024() {
        for (text, bytes) in [
            ("1", 1),
            ("1b", 1),
            ("1K", 1024),
            ("1.5k", 1536),
            (".5k", 512),
            ("5.", 5),
            ("0x10", 16),
            (" 12", 12),
            ("+5", 5),
            ("08", 8),
            ("1.0000000000000000001k", 1024),
            ("7.9E", 9_108_079_886_394_091_136),
        ] {
            assert_eq!(parse(text), Ok(bytes), "{text}");
        }
    }

    #[test]
    fn what_is_not_a_size_is_refused() {
        for text in [
            "", "1kB", "1.5", "1.5b", "0x10k", "1e3", "inf", "nan", "12x", "0x", "1kk", "0.1",
            "1 k", "1S", "1T1",
        ] {
            assert_eq!(parse(text), Err(SizeError::Invalid), "{text}");
        }
        assert_eq!(parse("18446744073709551616"), Err(SizeError::OutOfRange));
        assert_eq!(parse("18446744073709551616k"), Err(SizeError::Invalid));
        assert_eq!(parse("16E"), Err(SizeError::OutOfRange));
        assert_eq!(parse("-1"), Err(SizeError::OutOfRange));
        assert_eq!(parse("-0"), Err(SizeError::OutOfRange));
        assert_eq!(parse("-1k"), Err(SizeError::Invalid));
    }
}
