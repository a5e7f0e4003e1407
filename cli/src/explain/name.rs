//! Names that people type, found among those there are.

use anyhow::{Result, bail};

use crate::text::clean;

/// Names that are offered when there is none of this name.
const OFFERED: usize = 5;

/// Whose name it is. `names` may hold it more than once.
pub(super) fn find<'a>(what: &str, wanted: &str, names: impl Iterator<Item = &'a str>) -> Result<&'a str> {
    let mut names: Vec<_> = names.collect();
    names.sort_unstable();
    names.dedup();
    if let Some(name) = names.iter().find(|name| **name == wanted) {
        return Ok(name);
    }
    let found: Vec<_> = names.iter().copied().filter(|name| bare(name) == wanted).collect();
    match found[..] {
        [name] => return Ok(name),
        [] => {}
        _ => bail!("there is more than one {what} {}: say which of {}", clean(wanted), offer(&found)),
    }
    let distance = |name: &str| distance(bare(name), bare(wanted));
    let near = |name: &&str| name.contains(wanted) || distance(name) <= wanted.len() / 3;
    let mut close: Vec<_> = names.iter().copied().filter(near).collect();
    close.sort_by_key(|name| (distance(name), *name));
    match (close.is_empty(), names.is_empty()) {
        (false, _) => bail!("the coordinator knows no {what} {}; close to it: {}", clean(wanted), offer(&close)),
        (true, false) => bail!("the coordinator knows no {what} {}; it knows {}", clean(wanted), offer(&names)),
        (true, true) => bail!("the coordinator knows no {what} {}, nor any other", clean(wanted)),
    }
}

/// Without its namespace.
fn bare(name: &str) -> &str {
    name.rsplit_once('/').map_or(name, |(_, name)| name)
}

fn offer(names: &[&str]) -> String {
    let offered: Vec<_> = names.iter().take(OFFERED).map(|name| clean(name)).collect();
    let more = names.len() - offered.len();
    if more > 0 { format!("{}, {more} more", offered.join(", ")) } else { offered.join(", ") }
}

/// Letters to change, add or leave out to get from one to the other (Levenshtein).
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, y) in b.iter().enumerate() {
            let changed = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = changed.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    const PODS: [&str; 5] = ["default/train-1", "default/train-2", "ml/train-1", "ml/serve", "ml/serve"];

    #[test]
    fn a_name_is_found_with_and_without_its_namespace() {
        let check = |wanted, expected| assert_eq!(find("pod", wanted, PODS.into_iter()).unwrap(), expected);
        check("default/train-1", "default/train-1");
        check("train-2", "default/train-2");
        check("serve", "ml/serve");
    }

    #[test]
    fn what_is_not_there_is_answered_with_what_is() {
        let check = |wanted: &str, expected: &str| {
            assert_eq!(find("pod", wanted, PODS.into_iter()).unwrap_err().to_string(), expected);
        };
        check("train-1", "there is more than one pod train-1: say which of default/train-1, ml/train-1");
        check("trian-2", "the coordinator knows no pod trian-2; close to it: default/train-2");
        check("ml/sreve", "the coordinator knows no pod ml/sreve; close to it: ml/serve");
        check(
            "a\u{1b}",
            "the coordinator knows no pod a\u{fffd}; it knows default/train-1, default/train-2, ml/serve, ml/train-1",
        );
        let error = find("pod", "a", std::iter::empty()).unwrap_err().to_string();
        assert_eq!(error, "the coordinator knows no pod a, nor any other");
    }

    #[test]
    fn distances_are_in_letters() {
        let check = |a, b, expected| assert_eq!(distance(a, b), expected, "{a} {b}");
        check("", "", 0);
        check("", "abc", 3);
        check("kitten", "sitting", 3);
        check("train-1", "train-1", 0);
    }
}
