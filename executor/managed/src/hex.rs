//! Bytes as lower-case hexadecimal digits. The audit writes tens of thousands a second, so no digit has an allocation of its own.

const DIGITS: &[u8; 16] = b"0123456789abcdef";

/// The digits of bytes, two each.
pub(crate) fn encode(bytes: impl AsRef<[u8]>) -> String {
    let digit = |value: u8| char::from(DIGITS[usize::from(value & 15)]);
    bytes.as_ref().iter().flat_map(|byte| [digit(byte >> 4), digit(*byte)]).collect()
}

#[cfg(test)]
mod tests {
    #[test]
    fn two_digits_a_byte() {
        assert_eq!(super::encode([0x00, 0x0f, 0xa5, 0xff]), "000fa5ff");
    }
}
