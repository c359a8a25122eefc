//! Lines for people, made of what strangers sent.

use expediter_types::MAX_DETAIL;

/// One line of at most [`MAX_DETAIL`] characters, without control characters.
pub(crate) fn line(text: &str) -> String {
    let clean = |c: char| if c.is_control() { ' ' } else { c };
    let mut line: String = text
        .trim()
        .chars()
        .map(clean)
        .take(MAX_DETAIL + 1)
        .collect();
    if line.chars().count() > MAX_DETAIL {
        line = line.chars().take(MAX_DETAIL - 1).collect();
        line.push('…');
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_short_and_clean() {
        assert_eq!(line(" a\r\nb\u{7}c "), "a  b c");
        assert_eq!(line(&"é".repeat(200)), "é".repeat(200));
        let long = line(&"é".repeat(201));
        assert_eq!(long.chars().count(), MAX_DETAIL);
        assert!(long.ends_with('…'));
    }
}
