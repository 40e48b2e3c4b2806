//! What a benchmark target was asked to do.

/// The arguments of a suite.
#[derive(Debug)]
pub struct Suite {
    name: &'static str,
    filters: Vec<String>,
    /// Whether everything runs once on little data, to see that it works.
    pub is_smoke: bool,
    /// Whether more is printed than the usual.
    pub is_verbose: bool,
}

impl Suite {
    /// Reads the arguments of this process: words that select, `--verbose`, and what cargo adds.
    pub fn from_args(name: &'static str) -> Self {
        Suite::new(name, std::env::args().skip(1))
    }

    fn new(name: &'static str, args: impl Iterator<Item = String>) -> Self {
        let (flags, filters): (Vec<_>, Vec<_>) = args.partition(|arg| arg.starts_with('-'));
        let given = |flag: &str| flags.iter().any(|given| given == flag);
        // Without `--bench` it is a test that builds and runs benchmarks.
        Suite {
            name,
            filters,
            is_smoke: given("--test") || !given("--bench"),
            is_verbose: given("--verbose"),
        }
    }

    /// Whether a case is selected. Its path has the name of the suite before it, and each word must begin one of the parts:
    /// cargo hands the name of one suite to all of them, and then the word for one of its cases.
    pub fn selects(&self, path: &str) -> bool {
        let parts = || std::iter::once(self.name).chain(path.split('/'));
        self.filters.iter().all(|filter| parts().any(|part| part.starts_with(filter.as_str())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn suite(name: &'static str, args: &[&str]) -> Suite {
        Suite::new(name, args.iter().map(|arg| (*arg).to_owned()))
    }

    #[test]
    fn words_select_by_suite_and_by_case() {
        let args = ["packing_performance", "compression_analysis", "--bench"];
        assert!(suite("packing_performance", &args).selects("compression_analysis/Hybrid"));
        assert!(!suite("packing_performance", &args).selects("auto_selection"));
        assert!(!suite("simd_unpacking_performance", &args).selects("compression_analysis"));
        assert!(suite("packing_performance", &["--bench"]).selects("auto_selection"));
        assert!(suite("simd_unpacking_performance", &["BitPacked2Bit"]).selects("BitPacked2Bit/scalar"));
    }

    #[test]
    fn flags_say_how() {
        let flags = |args: &[&str]| {
            let Suite { is_smoke, is_verbose, .. } = suite("s", args);
            (is_smoke, is_verbose)
        };
        assert_eq!(flags(&["--bench"]), (false, false));
        assert_eq!(flags(&["--bench", "--verbose"]), (false, true));
        assert_eq!(flags(&["--bench", "--test"]), (true, false));
        assert_eq!(flags(&[]), (true, false));
    }
}
