//! Buffers for incomplete messages and bodies, whose capacity stays close to their length.
//!
//! A `Vec` that is extended doubles, so that half of a message of 60 KiB took 126 KiB in its two buffers. Here a buffer
//! grows by a quarter, and never beyond the announced length: it holds at most 1.25 times the bytes that arrived, and a
//! MiB that arrives in reads of 16 KiB is copied five times in all, which is a fraction of what the kernel does.

/// Appends bytes to a buffer of which `length_max` are expected in the end.
pub(super) fn append(buffer: &mut Vec<u8>, bytes: &[u8], length_max: usize) {
    let length = buffer.len() + bytes.len();
    if length > buffer.capacity() {
        let wanted = (buffer.capacity() + buffer.capacity() / 4).min(length_max).max(length);
        buffer.reserve_exact(wanted - buffer.len());
    }
    buffer.extend_from_slice(bytes);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffer_costs_little_more_than_it_holds_and_never_more_than_announced() {
        for step in [1, 7, 1_000, 16 << 10] {
            let (mut buffer, mut growths) = (Vec::new(), 0);
            while buffer.len() + step <= 100_000 {
                let before = buffer.capacity();
                append(&mut buffer, &vec![7; step], 100_000);
                growths += usize::from(buffer.capacity() != before);
                assert!(buffer.capacity() <= (buffer.len() + buffer.len() / 4).min(100_000), "{step}");
            }
            assert!(growths < 60, "{growths} growths with {step}");
        }
        let mut announced_less = vec![1];
        append(&mut announced_less, &[2, 3], 2);
        assert_eq!(announced_less, [1, 2, 3]);
    }
}
