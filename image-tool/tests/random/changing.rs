//! What changes images: each tool does it to its own copy.

use crate::case::Case;
use crate::images::Image;
use crate::line::Line;

impl Case<'_> {
    /// The image that most work is done on: nothing stands on it.
    fn top(&self) -> Image {
        self.chain.last().unwrap().clone()
    }

    /// One operation by each tool.
    pub(crate) fn operate(&mut self) {
        match self.random.below(32) {
            0..=8 => self.convert(),
            9 | 10 => self.dd(),
            11..=13 => self.create(),
            14..=16 => self.resize(),
            17..=19 => self.snapshot(),
            20..=22 => self.rebase(),
            23..=25 => self.commit(),
            26 | 27 => self.amend(),
            28 => self.bitmap(),
            29 => self.bench_write(),
            30 => self.repair(),
            _ => self.convert_offloaded(),
        }
    }

    fn resize(&mut self) {
        let image = self.top();
        let mut line = self.options.line("resize");
        let other = self.size();
        let random = &mut self.random;
        line.perhaps(random, 3, "quiet");
        line.perhaps(random, 2, "shrink");
        if random.one_in(3) {
            let modes = ["off", "metadata", "falloc", "full"];
            let mode = random.pick(&modes);
            line.value(random, "preallocation", mode);
        }
        let size = match random.below(3) {
            0 => format!("+{}", random.size(other)),
            1 => format!("-{}", random.size((image.size / 2).max(512) / 512 * 512)),
            _ => random.size(other),
        };
        self.target(&mut line, &image);
        line.operand(size);
        self.do_both(&line);
    }

    fn snapshot(&mut self) {
        let image = self.an_image();
        let mut line = self.options.line("snapshot");
        let known = match self.random.below(4) {
            0 => "1".to_owned(),
            _ => image
                .snapshots
                .first()
                .cloned()
                .unwrap_or_else(|| "none".to_owned()),
        };
        match self.random.below(3) {
            0 => line.letter_value("create", "another"),
            1 => line.letter_value("apply", &known),
            _ => line.letter_value("delete", &known),
        };
        line.perhaps(&mut self.random, 4, "quiet");
        self.target(&mut line, &image);
        self.do_both(&line);
    }

    /// The line's cache modes and progress.
    fn written(&mut self, line: &mut Line<'_>) {
        if self.random.one_in(4) {
            let cache = self.cache();
            line.value(&mut self.random, "cache", cache);
        }
        line.perhaps(&mut self.random, 4, "progress");
        line.perhaps(&mut self.random, 4, "quiet");
    }

    fn rebase(&mut self) {
        let image = self.top();
        let mut line = self.options.line("rebase");
        self.written(&mut line);
        // Not onto itself: the reference then reads for ever.
        let below = self.random.below(self.chain.len() as u64) as usize;
        let below = self.chain[below].clone();
        if self.random.one_in(3) || below.name == image.name {
            line.value(&mut self.random, "backing", "");
        } else {
            line.value(&mut self.random, "backing", &below.name);
            line.value(&mut self.random, "backing-format", below.format());
        }
        if self.random.one_in(4) {
            let cache = self.cache();
            line.value(&mut self.random, "backing-cache", cache);
        }
        if self.random.one_in(4) {
            line.flag(&mut self.random, "backing-unsafe");
        } else if !image.data_file {
            line.perhaps(&mut self.random, 3, "compress");
        }
        line.perhaps(&mut self.random, 8, "force-share");
        self.target(&mut line, &image);
        self.do_both(&line);
    }

    fn commit(&mut self) {
        let image = self.top();
        let mut line = self.options.line("commit");
        self.written(&mut line);
        line.perhaps(&mut self.random, 3, "drop");
        if self.random.one_in(3) {
            let base = self.an_image();
            line.value(&mut self.random, "base", &base.name);
        }
        if self.random.one_in(8) {
            line.value(&mut self.random, "rate", "1G");
        }
        self.target(&mut line, &image);
        self.do_both(&line);
    }

    fn amend(&mut self) {
        let image = self.top();
        let mut line = self.options.line("amend");
        let random = &mut self.random;
        let mut list = Vec::new();
        let mut set = |key: &str, value: String| list.push((key.to_owned(), value));
        match random.below(9) {
            0 => set("compat", random.pick(&["0.10", "v2"]).to_owned()),
            1 => set("compat", random.pick(&["1.1", "v3"]).to_owned()),
            2 => set("lazy_refcounts", random.pick(&["on", "off"]).to_owned()),
            3 | 4 => set("refcount_bits", (1u64 << random.below(7)).to_string()),
            5 => set("size", random.size(image.size + 65536)),
            6 => {
                let below = &self.chain[0];
                set("backing_file", below.name.clone());
                set("backing_fmt", below.format().to_owned());
            }
            7 => set("data_file", format!("{}.data", image.name)),
            _ => set("data_file_raw", random.pick(&["on", "off"]).to_owned()),
        }
        line.format_options(random, "amend", &list);
        line.perhaps(random, 6, "force");
        self.written(&mut line);
        self.target(&mut line, &image);
        self.do_both(&line);
    }

    fn bitmap(&mut self) {
        let image = self.an_image();
        let mut line = self.options.line("bitmap");
        let known = image
            .bitmaps
            .first()
            .cloned()
            .unwrap_or_else(|| "b0".to_owned());
        let other = self.an_image();
        let random = &mut self.random;
        let mut name = known.clone();
        match random.below(6) {
            0 => {
                name = "another".to_owned();
                line.flag(random, "add");
                if random.one_in(2) {
                    line.value(random, "granularity", "64k");
                }
            }
            1 => {
                line.flag(random, "remove");
            }
            2 => {
                line.flag(random, "clear");
                line.perhaps(random, 2, "enable");
            }
            3 => {
                line.flag(random, "enable");
            }
            4 => {
                line.flag(random, "disable");
            }
            _ => {
                // Into a new one, from another image or from its own.
                name = "merged".to_owned();
                line.flag(random, "add");
                let source = other.bitmaps.first().cloned();
                line.value(random, "merge", &source.unwrap_or(known));
                if random.one_in(2) {
                    line.value(random, "source-file", &other.name);
                    line.value(random, "source-format", other.format());
                }
            }
        }
        self.target(&mut line, &image);
        line.operand(name);
        self.do_both(&line);
    }

    fn bench_write(&mut self) {
        let image = self.top();
        let mut line = self.options.line("bench");
        let random = &mut self.random;
        let size = 512 << random.below(5);
        let count = 1 + random.below((image.size / 2 / size).clamp(1, 60));
        line.flag(random, "write");
        line.value(random, "count", &count.to_string());
        line.value(random, "buffer-size", &size.to_string());
        if random.one_in(2) {
            let byte = random.below(256).to_string();
            line.value(random, "pattern", &byte);
        }
        if random.one_in(2) {
            let depth = 1 + random.below(8);
            line.value(random, "depth", &depth.to_string());
            let interval = depth + random.below(8);
            line.value(random, "flush-interval", &interval.to_string());
            line.perhaps(random, 2, "no-drain");
        }
        if random.one_in(3) {
            line.flag(random, "native");
            line.value(random, "cache", "none");
        }
        self.target(&mut line, &image);
        self.do_both(&line);
    }

    /// Both mend the same damage.
    fn repair(&mut self) {
        let image = self.top();
        if !image.snapshots.is_empty() && !image.bitmaps.is_empty() {
            // qemu-img loses the snapshots when it repairs an image that has bitmaps, too.
            return;
        }
        if !image.raw {
            for folder in [self.pair.theirs(), self.pair.ours()] {
                let path = folder.join(&image.name);
                let mut bytes = std::fs::read(&path).unwrap();
                damage(&mut bytes, self.random.0);
                std::fs::write(&path, bytes).unwrap();
            }
            self.log
                .push_str("(a count of the first refcount block was changed)\n");
        }
        let mut line = self.options.line("check");
        let what = self.random.pick(&["leaks", "all", "all"]);
        line.value(&mut self.random, "repair", what);
        line.perhaps(&mut self.random, 4, "quiet");
        self.target(&mut line, &image);
        self.do_both(&line);
        if !self.done {
            // What one of them leaves damaged cannot be compared as a disk.
            self.pair.copy_theirs();
            self.done = true;
        }
    }
}

/// Changes one of the 16-bit counts in the first refcount block, of a cluster that is there.
fn damage(bytes: &mut [u8], random: u64) {
    let word = |bytes: &[u8], at: usize| {
        u64::from_be_bytes(bytes[at..at + 8].try_into().unwrap()) as usize
    };
    let block = word(bytes, word(bytes, 48));
    let version = bytes[7];
    let cluster_bits = bytes[23];
    if version == 3 && bytes[99] != 4 {
        return;
    }
    let clusters = (bytes.len() >> cluster_bits).min(200);
    let cluster = 1 + (random >> 8) as usize % (clusters - 1);
    bytes[block + 2 * cluster + 1] ^= 1 << (random % 2);
}
