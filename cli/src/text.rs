//! Figures and names as people read them. An unknown figure is an en dash, never zero; a name from outside is harmless.

use std::time::Duration;

use ebb_core::resources::Resources;
use ebb_core::time::Instant;
use ratatui::text::Span;

/// What stands where nothing is known.
pub(crate) const UNKNOWN: &str = "–";

/// Names come from others. Control characters would move the cursor, invisible ones and changes of direction would
/// break columns: each becomes the replacement character.
pub(crate) fn clean(text: &str) -> String {
    let harmless = |c: char| !c.is_control() && width(c.encode_utf8(&mut [0; 4])) > 0 && !turns(c);
    text.chars().map(|c| if harmless(c) { c } else { char::REPLACEMENT_CHARACTER }).collect()
}

/// Changes the direction of what follows (Unicode TR 9).
fn turns(c: char) -> bool {
    matches!(c, '\u{061c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// In columns of the terminal.
pub(crate) fn width(text: &str) -> usize {
    Span::raw(text).width()
}

/// At most this wide. What is cut is at the end, and never within a figure: half of one is another one.
pub(crate) fn clip(text: &str, columns: usize) -> String {
    if width(text) <= columns {
        return text.to_owned();
    }
    let mut end = 0;
    let mut used = 0;
    for (index, c) in text.char_indices() {
        end = index;
        used += width(c.encode_utf8(&mut [0; 4]));
        if used + 1 > columns {
            break;
        }
    }
    let (kept, cut) = text.split_at(end);
    let word = kept.rfind(' ').map_or(0, |space| space + 1);
    let in_figure = kept[word..].starts_with(|c: char| c.is_ascii_digit() || c == '$') && !cut.starts_with(' ');
    // A name that is all of it is better cut than gone.
    let kept = if in_figure && word > 0 { &kept[..word] } else { kept };
    if columns > 0 { format!("{kept}…") } else { String::new() }
}

/// At most this wide. What is cut is at the beginning: the end of a path tells more.
pub(crate) fn clip_start(text: &str, columns: usize) -> String {
    if width(text) <= columns {
        return text.to_owned();
    }
    let mut kept: Vec<char> = Vec::new();
    let mut used = 0;
    for c in text.chars().rev() {
        used += width(c.encode_utf8(&mut [0; 4]));
        if used + 1 > columns {
            break;
        }
        kept.push(c);
    }
    let ellipsis = if columns > 0 { "…" } else { "" };
    ellipsis.chars().chain(kept.into_iter().rev()).collect()
}

fn known<T>(figure: Option<T>, text: impl FnOnce(T) -> String) -> String {
    figure.map_or_else(|| UNKNOWN.to_owned(), text)
}

/// From a ratio, where 1 is all of it.
pub(crate) fn percent(ratio: Option<f64>) -> String {
    known(ratio, |ratio| {
        let percent = ratio * 100.0;
        // What is little is not nothing.
        if percent > 0.0 && percent < 0.5 { "<1 %".to_owned() } else { format!("{percent:.0} %") }
    })
}

/// CPUs' worth of time.
pub(crate) fn cores(cores: Option<f64>) -> String {
    known(cores, |cores| match cores {
        cores if cores <= 0.0 => "0".to_owned(),
        cores if cores < 0.001 => "<1m".to_owned(),
        cores if cores < 0.0995 => format!("{:.0}m", cores * 1000.0),
        cores if cores < 9.995 => format!("{cores:.2}"),
        cores if cores < 99.95 => format!("{cores:.1}"),
        cores => format!("{cores:.0}"),
    })
}

/// With three digits at least and a binary unit, as in `23.4 GiB`.
pub(crate) fn bytes(bytes: Option<f64>) -> String {
    known(bytes, |bytes| {
        let (value, unit) = scaled(bytes);
        format!("{} {unit}", digits(value))
    })
}

/// Of these, so many, in one unit, as in `23.4 of 64.0 GiB`.
pub(crate) fn bytes_of(part: Option<f64>, whole: Option<f64>) -> String {
    let Some(whole) = whole else { return bytes(part) };
    let (value, unit) = scaled(whole);
    let divisor = if value > 0.0 { whole / value } else { 1.0 };
    format!("{} of {} {unit}", known(part, |part| digits(part / divisor)), digits(value))
}

fn scaled(bytes: f64) -> (f64, &'static str) {
    const UNITS: [&str; 6] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
    let mut value = bytes;
    for unit in UNITS {
        // As it would be written: 1023.7 is 1024.
        if value.abs() < 999.5 {
            return (value, unit);
        }
        value /= 1024.0;
    }
    (value, "EiB")
}

fn digits(value: f64) -> String {
    match value.abs() {
        0.0 => "0".to_owned(),
        small if small < 9.995 => format!("{value:.2}"),
        middle if middle < 99.95 => format!("{value:.1}"),
        _ => format!("{value:.0}"),
    }
}

/// Of something that happens: so many a second, without the unit.
pub(crate) fn rate(per_second: Option<f64>) -> String {
    known(per_second, |rate| match rate {
        rate if rate >= 999_500.0 => format!("{:.1}M", rate / 1e6),
        rate if rate >= 9_995.0 => format!("{:.0}k", rate / 1e3),
        rate if rate >= 999.5 => format!("{:.1}k", rate / 1e3),
        rate if rate >= 9.95 || rate <= 0.0 => format!("{rate:.0}"),
        rate => format!("{rate:.1}"),
    })
}

/// How long, with its two largest units.
pub(crate) fn span(span: Duration) -> String {
    let seconds = span.as_secs();
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m {}s", seconds / 60, seconds % 60),
        3600..86_400 => format!("{}h {}m", seconds / 3600, seconds / 60 % 60),
        _ => format!("{}d {}h", seconds / 86_400, seconds / 3600 % 24),
    }
}

/// To the second.
pub(crate) fn moment(instant: Instant) -> String {
    let text = instant.to_string();
    format!("{}Z", &text[..19])
}

/// Of a resource, in its own unit.
pub(crate) fn amount(resource: &str, amount: u64) -> String {
    match resource {
        "cpu" => cores(Some(amount as f64 / 1000.0)),
        "memory" | "ephemeral-storage" => bytes(Some(amount as f64)),
        name if name.starts_with("hugepages-") => bytes(Some(amount as f64)),
        _ => amount.to_string(),
    }
}

/// As in `1.50 CPUs, 4.00 GiB memory, 1 nvidia.com/gpu`, without the pod itself.
pub(crate) fn amounts(resources: &Resources) -> String {
    let text = |(name, number)| match name {
        "cpu" => format!("{} CPU", amount(name, number)),
        _ => format!("{} {name}", amount(name, number)),
    };
    let all: Vec<_> = resources.iter().filter(|(name, _)| *name != "pods").map(text).collect();
    if all.is_empty() { "nothing".to_owned() } else { all.join(", ") }
}

/// From millionths of a US dollar.
pub(crate) fn dollars(micros: Option<f64>) -> String {
    known(micros, |micros| format!("${:.2}", micros / 1e6))
}

/// Of rows, where a filter may hide some.
pub(crate) fn counted(shown: usize, all: usize) -> String {
    if shown == all { all.to_string() } else { format!("{shown} of {all}") }
}

pub(crate) fn count(number: usize, thing: &str) -> String {
    format!("{number} {thing}{}", if number == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn figures_keep_three_digits_and_their_unit() {
        let check = |text: String, expected| assert_eq!(text, expected);
        check(bytes(Some(0.0)), "0 B");
        check(bytes(Some(1023.0)), "1.00 KiB");
        check(bytes(Some(1.5 * 1024.0 * 1024.0)), "1.50 MiB");
        check(bytes_of(Some(6e9), Some(64.0 * 1024.0 * 1024.0 * 1024.0)), "5.59 of 64.0 GiB");
        check(cores(Some(0.0042)), "4m");
        check(cores(Some(1.236)), "1.24");
        check(cores(Some(64.0)), "64.0");
        check(percent(Some(0.001)), "<1 %");
        check(percent(Some(0.0)), "0 %");
        check(rate(Some(12_345.0)), "12k");
        check(span(Duration::from_secs(3723)), "1h 2m");
        check(dollars(Some(1_234_567.0)), "$1.23");
    }

    #[test]
    fn unknown_is_a_dash_and_never_zero() {
        for text in [bytes(None), cores(None), percent(None), rate(None), dollars(None)] {
            assert_eq!(text, UNKNOWN);
        }
        assert_eq!(bytes_of(None, Some(1024.0 * 10.0)), "– of 10.0 KiB");
    }

    #[test]
    fn names_cannot_move_the_cursor() {
        assert_eq!(clean("a\u{1b}[2Jb\n\u{202e}c\u{200b}d"), "a\u{fffd}[2Jb\u{fffd}\u{fffd}c\u{fffd}d");
        assert_eq!(clean("节点-1"), "节点-1");
        assert_eq!(clip("节点-1", 4), "节…");
        assert_eq!(clip("ip-10-0-0-7", 9), "ip-10-0-…");
        assert_eq!(clip_start("/kubepods/pod-1", 6), "…pod-1");
    }

    #[test]
    fn no_figure_is_cut_in_two() {
        assert_eq!(clip("gpu 97% >= 10%", 6), "gpu …");
        assert_eq!(clip("gpu 97% >= 10%", 8), "gpu 97%…");
        assert_eq!(clip("2024-node", 4), "202…", "a name that is all there is");
    }

    proptest! {
        #[test]
        fn what_is_clipped_fits(text in "\\PC*", columns in 0_usize..40) {
            prop_assert!(width(&clip(&text, columns)) <= columns);
            prop_assert!(width(&clip_start(&text, columns)) <= columns);
        }

        #[test]
        fn cleaned_text_has_no_control_characters(text in any::<String>()) {
            prop_assert!(clean(&text).chars().all(|c| !c.is_control() && !turns(c)));
        }

        #[test]
        fn no_figure_makes_it_panic(figure in any::<f64>()) {
            let figure = Some(figure);
            let _any = (bytes(figure), bytes_of(figure, figure), cores(figure), percent(figure), rate(figure));
        }
    }
}
