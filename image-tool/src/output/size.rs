//! Sizes for people: `1.5 GiB`.

/// A size with three significant digits, in the unit in which it is below 1000.
pub(crate) fn human(bytes: u64) -> String {
    const UNITS: [&str; 7] = ["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];
    let mut unit = 0;
    let mut value = bytes as f64;
    while value >= 1000.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!(
        "{} {}B",
        three_digits(value),
        UNITS.get(unit).copied().unwrap_or("")
    )
}

/// C's `%.3g` for a value from 0 up to some thousands.
fn three_digits(value: f64) -> String {
    if value == 0.0 {
        return "0".to_owned();
    }
    let exponent = format!("{value:.2e}")
        .split_once('e')
        .and_then(|(_, exponent)| exponent.parse::<i32>().ok())
        .unwrap_or(0);
    if exponent >= 3 {
        let mantissa = value / 10f64.powi(exponent);
        return format!("{}e+{exponent:02}", trim_zeros(format!("{mantissa:.2}")));
    }
    let decimals = usize::try_from(2 - exponent).unwrap_or(0);
    trim_zeros(format!("{value:.decimals$}"))
}

fn trim_zeros(text: String) -> String {
    if !text.contains('.') {
        return text;
    }
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_written_in_three_digits() {
        for (bytes, text) in [
            (0, "0 B"),
            (512, "512 B"),
            (999, "999 B"),
            (1000, "0.977 KiB"),
            (417_792, "408 KiB"),
            (655_872, "640 KiB"),
            (1_314_816, "1.25 MiB"),
            (1_376_256, "1.31 MiB"),
            (10_485_760, "10 MiB"),
            (1_047_527_424, "999 MiB"),
            (1_048_051_712, "1e+03 MiB"),
            (u64::MAX, "16 EiB"),
        ] {
            assert_eq!(human(bytes), text, "{bytes}");
        }
    }
}
