//! What makes a new image: `convert`, `dd`, `create`, each by both tools from the same images.

use crate::case::Case;
use crate::images::{Image, List};
use crate::line::Line;

impl Case<'_> {
    /// A format, and options for it.
    fn target_options(&mut self, line: &mut Line<'_>, format: &str, backed: bool) -> List {
        let (list, what) = match format {
            "raw" => (self.raw_options(), "raw"),
            _ => (self.qcow2_options(backed), "qcow2"),
        };
        line.format_options(&mut self.random, what, &list);
        list
    }

    pub(crate) fn convert(&mut self) {
        let mut line = self.options.line("convert");
        let index = self.random.below(self.chain.len() as u64) as usize;
        let mut sources = vec![self.chain[index].clone()];
        if self.random.one_in(6) {
            sources.push(self.an_image());
        }
        // What the source does not hold is left to the new backing file, so it is to hold the same.
        let backing = match self.chain.get(index.wrapping_sub(1)) {
            Some(below) if self.random.one_in(5) && sources.len() == 1 => Some(below.clone()),
            _ => None,
        };
        let existing = backing.is_none() && self.random.one_in(5);
        let format = if backing.is_some() || !self.random.one_in(3) {
            "qcow2"
        } else {
            "raw"
        };
        self.sources(&mut line, &sources);
        if existing {
            self.onto_existing(&mut line, &sources, format);
        } else {
            line.value(&mut self.random, "output-format", format);
            let list = self.target_options(&mut line, format, backing.is_some());
            let extended = list.iter().any(|(key, _)| key == "extended_l2");
            let preallocated = list.iter().any(|(key, _)| key == "preallocation");
            if let Some(below) = backing.as_ref().filter(|_| extended || !preallocated) {
                line.value(&mut self.random, "backing", &below.name);
                line.value(&mut self.random, "backing-format", below.format());
            }
            let zlib = !list.iter().any(|(key, _)| key == "data_file");
            if format == "qcow2" && zlib {
                line.perhaps(&mut self.random, 4, "c");
            }
            line.operand("new");
        }
        if sources.len() == 1 {
            self.or_snapshot(&mut line, &sources[0], "snapshot");
        }
        if self.random.one_in(4) && sources[0].bitmaps.len() == 1 && format == "qcow2" {
            line.flag(&mut self.random, "bitmaps");
            line.perhaps(&mut self.random, 3, "skip-broken-bitmaps");
        }
        self.how(&mut line);
        self.do_both(&line);
    }

    fn sources(&mut self, line: &mut Line<'_>, sources: &[Image]) {
        let random = &mut self.random;
        let same = sources.iter().all(|image| image.raw == sources[0].raw);
        if random.one_in(6) {
            line.flag(random, "source-image-opts");
            for image in sources {
                line.operand(format!(
                    "driver={},file.filename={}",
                    image.format(),
                    image.name
                ));
            }
            return;
        }
        // Without a format all are probed, and what was written here looks like nothing.
        if same && !random.one_in(4) {
            line.value(random, "source-format", sources[0].format());
        }
        for image in sources {
            line.operand(&image.name);
        }
    }

    /// Options of how it is copied.
    fn how(&mut self, line: &mut Line<'_>) {
        if self.random.one_in(4) {
            let size = self.random.pick(&["0", "512", "4k", "64k", "1M"]);
            line.value(&mut self.random, "sparse-size", size);
        }
        for (option, modes) in [("source-cache", 5), ("output-cache", 5)] {
            if self.random.one_in(modes) {
                let cache = self.cache();
                line.value(&mut self.random, option, cache);
            }
        }
        if self.random.one_in(5) {
            let threads = 1 + self.random.below(16);
            line.value(&mut self.random, "parallel", &threads.to_string());
        }
        if self.random.one_in(12) {
            line.value(&mut self.random, "rate", "1G");
        }
        for (option, one_in) in [
            ("oob-writes", 5),
            ("force-share", 5),
            ("p", 5),
            ("quiet", 5),
            ("salvage", 8),
        ] {
            line.perhaps(&mut self.random, one_in, option);
        }
        self.secret(line);
    }

    /// A target that is there already.
    fn onto_existing(&mut self, line: &mut Line<'_>, sources: &[Image], format: &str) {
        let size: u64 =
            sources.iter().map(|image| image.size).sum::<u64>() + 512 * self.random.below(2) * 100;
        let mut create = self.options.line("create");
        create
            .value(&mut self.random, "format", format)
            .flag(&mut self.random, "quiet");
        let list = self.target_options(&mut create, format, false);
        create.operand("new").operand(size.to_string());
        let words = create.words(&mut self.random);
        self.make(&words);
        self.pair.copy_theirs();
        let random = &mut self.random;
        let fresh = !list
            .iter()
            .any(|(key, value)| key == "preallocation" && value != "off");
        line.flag(random, "n");
        if fresh {
            line.perhaps(random, 2, "target-is-zero");
        }
        if random.one_in(2) {
            line.flag(random, "target-image-opts");
            line.operand(format!("driver={format},file.filename=new"));
        } else {
            line.value(random, "output-format", format);
            line.operand("new");
        }
        // Compressed over what is allocated is a knowing difference.
        if format == "qcow2" && fresh {
            line.perhaps(random, 5, "c");
        }
    }

    /// Ranges are copied by the kernel, where it can.
    pub(crate) fn convert_offloaded(&mut self) {
        let image = self.an_image();
        let mut line = self.options.line("convert");
        line.flag(&mut self.random, "copy-range-offloading");
        line.value(&mut self.random, "source-format", image.format());
        line.value(&mut self.random, "output-format", "raw");
        line.operand(image.name).operand("new");
        self.do_both(&line);
    }

    pub(crate) fn dd(&mut self) {
        let image = self.an_image();
        let mut line = self.options.line("dd");
        let random = &mut self.random;
        if random.one_in(6) {
            line.flag(random, "image-opts");
            line.operand(format!(
                "if=driver={},file.filename={}",
                image.format(),
                image.name
            ));
        } else {
            line.value(random, "format", image.format());
            line.operand(format!("if={}", image.name));
        }
        line.operand("of=new");
        let block = 512u64 << random.below(9);
        if !random.one_in(5) {
            line.operand(format!("bs={}", random.size(block)));
        }
        let blocks = image.size / block + 2;
        if random.one_in(2) {
            line.operand(format!("count={}", random.below(blocks)));
        }
        if random.one_in(2) {
            line.operand(format!("skip={}", random.below(blocks)));
        }
        if !random.one_in(4) {
            let format = random.pick(&["qcow2", "raw"]);
            line.value(random, "output-format", format);
        }
        line.perhaps(random, 5, "force-share");
        self.secret(&mut line);
        self.do_both(&line);
    }

    /// The same image by both tools, which say the same about it.
    pub(crate) fn create(&mut self) {
        let mut line = self.options.line("create");
        let size = self.size();
        let raw = self.random.one_in(6);
        let format = if raw { "raw" } else { "qcow2" };
        line.value(&mut self.random, "format", format);
        let below = self.an_image();
        let backed = !raw && self.random.one_in(2);
        let mut list = if raw {
            self.raw_options()
        } else {
            self.qcow2_options(!self.random.0.is_multiple_of(3) && backed)
        };
        let random = &mut self.random;
        if backed {
            line.value(random, "backing", &below.name);
            line.value(random, "backing-format", below.format());
            line.perhaps(random, 4, "backing-unsafe");
        } else if !raw && random.one_in(4) {
            list.push(("data_file".to_owned(), "new.data".to_owned()));
            if random.one_in(2) {
                list.push(("data_file_raw".to_owned(), "on".to_owned()));
            }
        }
        let size = random.size(size);
        match random.below(4) {
            0 => {
                list.push(("size".to_owned(), size));
                line.operand("new");
            }
            1 if backed => {
                line.operand("new");
            }
            _ => {
                line.operand("new").operand(size);
            }
        }
        line.format_options(random, format, &list);
        line.perhaps(random, 4, "quiet");
        self.secret(&mut line);
        self.do_both(&line);
    }
}
