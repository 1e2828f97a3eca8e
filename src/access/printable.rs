//! Text that clients choose, and that appears in logs, in terminals and in messages.

/// Maximum length of the claim `sub`, in bytes.
pub const SUB_BYTES_MAX: usize = 255;

/// Returns true if the text may be a `sub`, which appears in logs and in messages. Letters of any script are allowed;
/// characters that move the cursor, end the line or change the direction of the text are not.
pub fn is_name(sub: &str) -> bool {
    (1..=SUB_BYTES_MAX).contains(&sub.len()) && !sub.contains(is_trick)
}

/// Returns true if the character moves the cursor, ends the line or changes the direction of the text.
pub fn is_trick(letter: char) -> bool {
    letter.is_control()
        || matches!(letter, '\u{61c}' | '\u{200e}'..='\u{200f}' | '\u{2028}'..='\u{202e}')
        || matches!(letter, '\u{2066}'..='\u{2069}' | '\u{feff}')
}
