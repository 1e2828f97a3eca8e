//! Decompression of a client's messages: bounded steps and messages; the same result whatever was decompressed before;
//! a limit that rejects exactly the messages above it; and messages that are decompressed as they were compressed.

use oyez::wire::inflate::{InflateError, Inflater};

use super::Input;
use crate::support::deflate::deflate;

/// Bytes that one step may take and produce, as the module documents.
const STEP_INPUT_BYTES: usize = 1 << 10;
const STEP_BYTES: usize = 8 << 10;

const MESSAGE_BYTES_MAX: usize = 64 << 10;

/// The first byte selects what the rest is: compressed data, or a message.
pub fn check(data: &[u8]) {
    let mut input = Input(data);
    let selected = input.u8();
    if selected & 1 == 0 {
        check_compressed(input.0);
    } else {
        let message: Vec<u8> = input.0.repeat(1 + usize::from(selected >> 1) % 8);
        let payload = deflate(&message, i32::from(selected >> 4) % 10);
        let bytes_max = message.len().max(1);
        assert_eq!(inflate(&mut Inflater::default(), payload.clone(), bytes_max), Ok(message.clone()));
        if message.len() > 1 {
            let result = inflate(&mut Inflater::default(), payload, message.len() - 1);
            assert_eq!(result, Err(InflateError::TooBig));
        }
    }
}

fn check_compressed(payload: &[u8]) {
    let mut used = Inflater::default();
    let first = inflate(&mut used, payload.to_vec(), MESSAGE_BYTES_MAX);
    assert_eq!(inflate(&mut used, payload.to_vec(), MESSAGE_BYTES_MAX), first, "with a used decompressor");
    let hello = inflate(&mut used, deflate(b"hello hello hello", 6), 100);
    assert_eq!(hello.as_deref(), Ok(&b"hello hello hello"[..]), "after {first:?}");
    let Ok(message) = first else { return };
    if let Some(smaller) = message.len().checked_sub(1) {
        assert_eq!(inflate(&mut used, payload.to_vec(), smaller), Err(InflateError::TooBig));
    }
    assert_eq!(inflate(&mut used, payload.to_vec(), message.len()), Ok(message));
}

/// Decompresses a message in steps.
fn inflate(inflater: &mut Inflater, payload: Vec<u8>, bytes_max: usize) -> Result<Vec<u8>, InflateError> {
    // Each step consumes or produces a byte, or begins one of the last two parts of the input.
    let steps_max = payload.len() + bytes_max + 4;
    let mut inflation = inflater.begin(payload);
    let mut message = Vec::new();
    let mut result = None;
    for _ in 0..steps_max {
        match inflation.step(&mut message, bytes_max) {
            Ok(progress) => {
                assert!(
                    progress.consumed <= STEP_INPUT_BYTES && progress.produced <= STEP_BYTES,
                    "{progress:?}"
                );
                assert!(message.len() <= bytes_max);
                if progress.is_complete {
                    result = Some(Ok(std::mem::take(&mut message)));
                    break;
                }
            }
            Err(error) => {
                result = Some(Err(error));
                break;
            }
        }
    }
    inflater.end(inflation);
    result.expect("steps without end")
}
