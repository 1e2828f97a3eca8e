//! Chunked transfer coding, taken apart as a client has to (RFC 9112 7.1).

/// Moves the data of the whole chunks at the front of `bytes` to `data`; true at the last chunk.
pub fn take(bytes: &mut Vec<u8>, data: &mut Vec<u8>) -> bool {
    loop {
        let Some(line_end) = bytes.windows(2).position(|two| two == b"\r\n") else { return false };
        let line = std::str::from_utf8(&bytes[..line_end]).unwrap();
        let length = usize::from_str_radix(line, 16).unwrap_or_else(|_| panic!("no size: {line:?}"));
        let (start, end) = (line_end + 2, line_end + 2 + length);
        if bytes.len() < end + 2 {
            return false;
        }
        assert_eq!(&bytes[end..end + 2], b"\r\n", "a chunk ends with its line");
        data.extend_from_slice(&bytes[start..end]);
        bytes.drain(..end + 2);
        if length == 0 {
            return true;
        }
    }
}

/// The data of `bytes`, which hold whole chunks and nothing else, and whether the last chunk is among them.
pub fn decode(mut bytes: Vec<u8>) -> (Vec<u8>, bool) {
    let mut data = Vec::new();
    let is_whole = take(&mut bytes, &mut data);
    assert!(bytes.is_empty(), "half a chunk, or something after the last: {bytes:?}");
    (data, is_whole)
}
