//! The configuration file.

use ebb_config::{Overrides, parse};

use crate::text;

/// A refusal says why, in the file's order, at places that the file has; what is accepted is not changed by a comment.
pub fn target(bytes: &[u8]) {
    let Some(text) = text(bytes) else { return };
    match parse(text, &Overrides::default()) {
        Ok(policy) => {
            let again = parse(&format!("# A comment.\n{text}"), &Overrides::default());
            assert_eq!(format!("{again:?}"), format!("{:?}", Ok::<_, ()>(policy)));
        }
        Err(problems) => {
            assert!(!problems.is_empty() && problems.is_sorted());
            // YAML has line breaks that `lines` does not know, and the end of the file is a place too.
            let lines = text.chars().filter(|c| "\n\r\u{85}\u{2028}\u{2029}".contains(*c)).count() as u64 + 1;
            let outside = problems.iter().find(|problem| problem.line > lines);
            assert!(outside.is_none(), "{outside:?} of {lines} lines");
        }
    }
}
