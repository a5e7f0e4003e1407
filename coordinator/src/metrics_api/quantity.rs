//! Quantities in the form that Kubernetes' own library gives them: the largest unit without a fraction.

pub(super) fn cpu(nanocores: u64) -> String {
    in_largest(nanocores, 1000, &["n", "u", "m", ""])
}

pub(super) fn memory(bytes: u64) -> String {
    in_largest(bytes, 1024, &["", "Ki", "Mi", "Gi", "Ti"])
}

pub(super) fn thousandths(number: u64) -> String {
    in_largest(number, 1000, &["m", ""])
}

fn in_largest(mut number: u64, step: u64, units: &[&str]) -> String {
    let mut units = units.iter();
    let mut unit = units.next().copied().unwrap_or_default();
    if number == 0 {
        return "0".to_owned();
    }
    while number.is_multiple_of(step) {
        let Some(next) = units.next() else { break };
        (number, unit) = (number / step, next);
    }
    format!("{number}{unit}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_unit_is_the_largest_without_a_fraction() {
        let all = [0, 1, 1000, 250_000_000, 1_000_000_000, 2_000_000_000_000].map(cpu);
        assert_eq!(all, ["0", "1n", "1u", "250m", "1", "2000"]);
        assert_eq!([0, 730, 2000, 73_500].map(thousandths), ["0", "730m", "2", "73500m"]);
        assert_eq!([0, 1000, 1024, 1536, 3 << 30].map(memory), ["0", "1000", "1Ki", "1536", "3Gi"]);
    }
}
