//! Random chains of images, by either tool, and what is done to them before both look at them.

use crate::case::Case;

/// What a case knows of an image.
#[derive(Clone, Debug)]
pub(crate) struct Image {
    pub(crate) name: String,
    pub(crate) raw: bool,
    pub(crate) size: u64,
    pub(crate) cluster: u64,
    pub(crate) data_file: bool,
    pub(crate) snapshots: Vec<String>,
    pub(crate) bitmaps: Vec<String>,
}

impl Image {
    pub(crate) fn format(&self) -> &'static str {
        if self.raw { "raw" } else { "qcow2" }
    }
}

/// Keys and values of `-o`.
pub(crate) type List = Vec<(String, String)>;

fn set(list: &mut List, key: &str, value: impl ToString) {
    list.push((key.to_owned(), value.to_string()));
}

fn get<'a>(list: &'a List, key: &str) -> Option<&'a str> {
    list.iter()
        .find(|(name, _)| name == key)
        .map(|(_, value)| &value[..])
}

/// Sizes are multiples of 64 KiB up to this many, or a little less.
const MAX_UNITS: u64 = 64;

impl Case<'_> {
    pub(crate) fn size(&mut self) -> u64 {
        let size = (1 + self.random.below(MAX_UNITS)) * 65536;
        if self.random.one_in(4) {
            size - 512 * self.random.below(100)
        } else {
            size
        }
    }

    /// Options of a qcow2 image that go together. `backed`: it will have a backing file.
    pub(crate) fn qcow2_options(&mut self, backed: bool) -> List {
        let random = &mut self.random;
        let mut list = List::new();
        let small = random.below(8);
        let cluster = 512u64 << if random.one_in(8) { small + 5 } else { small };
        if random.one_in(6) {
            set(
                &mut list,
                "compat",
                if random.one_in(2) { "0.10" } else { "v2" },
            );
            set(&mut list, "cluster_size", cluster);
            return list;
        }
        if random.one_in(5) {
            set(
                &mut list,
                "compat",
                if random.one_in(2) { "1.1" } else { "v3" },
            );
        }
        let extended = random.one_in(4);
        if extended {
            let cluster = random.size(cluster.max(16384));
            set(&mut list, "cluster_size", cluster);
            set(&mut list, "extended_l2", "on");
        } else if !random.one_in(8) {
            let cluster = random.size(cluster);
            set(&mut list, "cluster_size", cluster);
        }
        if random.one_in(3) {
            set(&mut list, "refcount_bits", 1u64 << random.below(7));
        }
        if random.one_in(4) {
            set(
                &mut list,
                "lazy_refcounts",
                if random.one_in(4) { "off" } else { "on" },
            );
        }
        if random.one_in(3) {
            set(
                &mut list,
                "compression_type",
                random.pick(&["zstd", "zstd", "zlib"]),
            );
        }
        if random.one_in(5) && (!backed || extended) {
            set(
                &mut list,
                "preallocation",
                random.pick(&["metadata", "falloc", "full", "off"]),
            );
        }
        if random.one_in(20) {
            set(&mut list, random.pick(&["nocow", "extent_size_hint"]), 0);
            if let Some((key, value)) = list.last_mut()
                && key == "nocow"
            {
                *value = "on".to_owned();
            }
        }
        list
    }

    /// Options of a raw image.
    pub(crate) fn raw_options(&mut self) -> List {
        let random = &mut self.random;
        let mut list = List::new();
        if random.one_in(3) {
            set(
                &mut list,
                "preallocation",
                random.pick(&["off", "falloc", "full"]),
            );
        }
        if random.one_in(8) {
            set(&mut list, "nocow", "on");
        }
        if random.one_in(8) {
            set(&mut list, "extent_size_hint", "1M");
        }
        list
    }

    /// What there will be, by these options.
    pub(crate) fn described(&self, name: &str, size: u64, list: &List) -> Image {
        let number = |text: &str| match text.strip_suffix(['k', 'M']) {
            Some(digits) => {
                digits.parse::<u64>().unwrap() << if text.ends_with('k') { 10 } else { 20 }
            }
            None => text.parse().unwrap(),
        };
        Image {
            name: name.to_owned(),
            raw: false,
            size,
            cluster: get(list, "cluster_size").map_or(65536, number),
            data_file: get(list, "data_file").is_some(),
            snapshots: Vec::new(),
            bitmaps: Vec::new(),
        }
    }

    /// A chain of one to four images, by either tool.
    pub(crate) fn chain(&mut self) {
        let length = 1 + self.random.below(4);
        for index in 0..length {
            let name = format!("i{index}");
            let image = if index == 0 && self.random.one_in(3) {
                self.raw_image(&name)
            } else {
                self.qcow2_image(&name)
            };
            self.chain.push(image);
            self.scribble(self.chain.len() - 1);
            self.populate(self.chain.len() - 1);
        }
    }

    fn raw_image(&mut self, name: &str) -> Image {
        let size = self.size();
        let list = self.raw_options();
        let text = self.random.size(size);
        let mut line = self.options.line("create");
        line.value(&mut self.random, "format", "raw")
            .flag(&mut self.random, "quiet");
        line.format_options(&mut self.random, "raw", &list);
        line.operand(name).operand(text);
        let words = line.words(&mut self.random);
        self.make(&words);
        Image {
            raw: true,
            ..self.described(name, size, &List::new())
        }
    }

    fn qcow2_image(&mut self, name: &str) -> Image {
        let below = self.chain.last().cloned();
        let mut list = self.qcow2_options(below.is_some());
        let version_2 = matches!(get(&list, "compat"), Some("0.10" | "v2"));
        if self.random.one_in(8) && !version_2 {
            set(&mut list, "data_file", format!("{name}.data"));
            if below.is_none() && self.random.one_in(2) {
                set(&mut list, "data_file_raw", "on");
            }
        }
        let mut size = self.size();
        let text = self.random.size(size);
        let mut line = self.options.line("create");
        let random = &mut self.random;
        line.value(random, "format", "qcow2").flag(random, "quiet");
        if let Some(below) = &below {
            if random.one_in(3) {
                set(&mut list, "backing_file", &below.name);
                set(&mut list, "backing_fmt", below.format());
            } else {
                line.value(random, "backing", &below.name);
                line.value(random, "backing-format", below.format());
            }
        }
        let image = self.described(name, size, &list);
        match (self.random.below(4), below) {
            (0, Some(below)) => {
                size = below.size;
                line.operand(name);
            }
            (1, _) => {
                set(&mut list, "size", text);
                line.operand(name);
            }
            _ => {
                line.operand(name).operand(text);
            }
        }
        line.format_options(&mut self.random, "qcow2", &list);
        let words = line.words(&mut self.random);
        self.make(&words);
        Image { size, ..image }
    }

    /// Writes, zeroes, discards and compressed writes by qemu-io.
    pub(crate) fn scribble(&mut self, index: usize) {
        let image = self.chain[index].clone();
        let (size, cluster) = (image.size, image.cluster);
        let mut command = ["qemu-io", "-d", "unmap", "-f", image.format()]
            .map(str::to_owned)
            .to_vec();
        for _ in 0..1 + self.random.below(5) {
            let offset = self.random.below(size / 512) * 512;
            let len = (512 * (1 + self.random.below(400))).min(size - offset);
            let start = offset / cluster * cluster;
            let step = match self.random.below(7) {
                0 => format!("write -z {offset} {len}"),
                1 => format!("write -z -u {offset} {len}"),
                2 => format!("discard {offset} {len}"),
                3 if start + cluster <= size && !image.raw && !image.data_file => {
                    format!("write -c -P {} {start} {cluster}", self.random.below(256))
                }
                _ => format!("write -P {} {offset} {len}", 1 + self.random.below(255)),
            };
            command.extend(["-c".to_owned(), step]);
        }
        command.push(image.name);
        // A compressed write to a cluster that has data is refused; that is no matter here.
        self.run_there(&command);
    }

    /// Snapshots and bitmaps, by either tool; what is refused is not there.
    fn populate(&mut self, index: usize) {
        if self.chain[index].raw {
            return;
        }
        let name = self.chain[index].name.clone();
        if self.random.one_in(3) {
            let snapshot = format!("s{}", self.random.below(100));
            let mut line = self.options.line("snapshot");
            line.letter_value("create", &snapshot).operand(&name);
            let words = line.words(&mut self.random);
            if self.attempt(&words) {
                self.chain[index].snapshots.push(snapshot);
            }
        }
        if self.random.one_in(3) {
            let bitmap = format!("b{}", self.random.below(3));
            let mut line = self.options.line("bitmap");
            line.flag(&mut self.random, "add");
            if self.random.one_in(2) {
                let granularity = 512u64 << self.random.below(9);
                let text = self.random.size(granularity);
                line.value(&mut self.random, "granularity", &text);
            }
            line.perhaps(&mut self.random, 4, "disable");
            line.operand(&name).operand(&bitmap);
            let words = line.words(&mut self.random);
            if self.attempt(&words) {
                self.chain[index].bitmaps.push(bitmap);
            }
        }
        if self.random.one_in(2) {
            self.scribble(index);
        }
    }
}
