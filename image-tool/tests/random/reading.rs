//! What leaves images as they are: both tools look at the same ones.

use std::path::Path;

use crate::case::Case;
use crate::images::Image;

/// Cache modes.
const CACHES: [&str; 5] = ["none", "writeback", "writethrough", "directsync", "unsafe"];

impl Case<'_> {
    pub(crate) fn cache(&mut self) -> &'static str {
        CACHES[self.random.below(CACHES.len() as u64) as usize]
    }

    pub(crate) fn an_image(&mut self) -> Image {
        let index = self.random.below(self.chain.len() as u64) as usize;
        self.chain[index].clone()
    }

    /// One look at one image, or two.
    pub(crate) fn look(&mut self, folder: &Path) {
        match self.random.below(16) {
            0..=2 => self.info(folder),
            3..=5 => self.map(folder),
            6 | 7 => self.check(folder),
            8..=10 => self.measure(folder),
            11..=13 => self.compare(folder),
            14 => self.snapshot_list(folder),
            _ => self.bench_read(folder),
        }
    }

    fn info(&mut self, folder: &Path) {
        let image = self.an_image();
        let mut line = self.options.line("info");
        self.target(&mut line, &image);
        self.output(&mut line);
        line.perhaps(&mut self.random, 2, "backing-chain");
        line.perhaps(&mut self.random, 4, "force-share");
        self.read_in(folder, &line);
    }

    fn output(&mut self, line: &mut crate::line::Line<'_>) {
        if !self.random.one_in(4) {
            let form = self.random.pick(&["json", "json", "human"]);
            line.value(&mut self.random, "output", form);
        }
    }

    fn map(&mut self, folder: &Path) {
        let image = self.an_image();
        let mut line = self.options.line("map");
        self.target(&mut line, &image);
        self.output(&mut line);
        if self.random.one_in(3) {
            let start = self.random.below(image.size / 512) * 512;
            let start = self.random.size(start);
            line.value(&mut self.random, "start-offset", &start);
        }
        if self.random.one_in(3) {
            let len = (1 + self.random.below(image.size / 512)) * 512;
            let len = self.random.size(len);
            line.value(&mut self.random, "max-length", &len);
        }
        line.perhaps(&mut self.random, 4, "force-share");
        self.read_in(folder, &line);
    }

    fn check(&mut self, folder: &Path) {
        let image = self.an_image();
        let mut line = self.options.line("check");
        self.target(&mut line, &image);
        self.output(&mut line);
        if self.random.one_in(4) {
            let cache = self.cache();
            line.value(&mut self.random, "cache", cache);
        }
        line.perhaps(&mut self.random, 4, "force-share");
        line.perhaps(&mut self.random, 4, "quiet");
        self.read_in(folder, &line);
    }

    fn measure(&mut self, folder: &Path) {
        let image = self.an_image();
        let mut line = self.options.line("measure");
        let raw = self.random.one_in(4);
        let mut list = if raw {
            Vec::new()
        } else {
            self.qcow2_options(false)
        };
        list.retain(|(key, _)| key != "nocow" && key != "extent_size_hint");
        // The other names of versions are unknown to qemu-img's `measure`.
        for (_, value) in list.iter_mut().filter(|(key, _)| key == "compat") {
            *value = value.replace("v2", "0.10").replace("v3", "1.1");
        }
        let format = if raw { "raw" } else { "qcow2" };
        if !raw || self.random.one_in(2) {
            line.value(&mut self.random, "target-format", format);
        }
        line.format_options(&mut self.random, "qcow2", &list);
        self.output(&mut line);
        if self.random.one_in(4) {
            let size = self.size();
            let size = self.random.size(size);
            line.value(&mut self.random, "size", &size);
        } else {
            self.target(&mut line, &image);
            self.or_snapshot(&mut line, &image, "snapshot");
        }
        line.perhaps(&mut self.random, 4, "force-share");
        self.read_in(folder, &line);
    }

    /// A snapshot as the source, if the image has one.
    pub(crate) fn or_snapshot(
        &mut self,
        line: &mut crate::line::Line<'_>,
        image: &Image,
        option: &str,
    ) {
        // The reference takes the size that the disk has now for that of the snapshot.
        if self.changed {
            return;
        }
        if let Some(snapshot) = image.snapshots.first().filter(|_| self.random.one_in(2)) {
            let parameter = match self.random.below(3) {
                0 => format!("snapshot.name={snapshot}"),
                1 => "snapshot.id=1".to_owned(),
                _ => snapshot.clone(),
            };
            line.value(&mut self.random, option, &parameter);
        }
    }

    fn compare(&mut self, folder: &Path) {
        let (left, right) = (self.an_image(), self.an_image());
        let mut line = self.options.line("compare");
        if self.random.one_in(5) {
            line.flag(&mut self.random, "image-opts");
            for image in [left, right] {
                let name = format!("driver={},file.filename={}", image.format(), image.name);
                line.operand(name);
            }
        } else {
            line.value(&mut self.random, "a-format", left.format());
            line.value(&mut self.random, "b-format", right.format());
            line.operand(left.name).operand(right.name);
        }
        if self.random.one_in(4) {
            let cache = self.cache();
            line.value(&mut self.random, "cache", cache);
        }
        for option in ["strict", "progress", "quiet", "force-share"] {
            line.perhaps(&mut self.random, 4, option);
        }
        self.secret(&mut line);
        self.read_in(folder, &line);
    }

    /// A secret, which nothing here needs.
    pub(crate) fn secret(&mut self, line: &mut crate::line::Line<'_>) {
        if self.random.one_in(20) {
            line.value(&mut self.random, "object", "secret,id=sec1,data=letmein");
        }
    }

    fn snapshot_list(&mut self, folder: &Path) {
        let image = self.an_image();
        let mut line = self.options.line("snapshot");
        self.target(&mut line, &image);
        line.perhaps(&mut self.random, 2, "list");
        line.perhaps(&mut self.random, 3, "force-share");
        line.perhaps(&mut self.random, 3, "quiet");
        self.read_in(folder, &line);
    }

    fn bench_read(&mut self, folder: &Path) {
        let image = self.an_image();
        let mut line = self.options.line("bench");
        let random = &mut self.random;
        let size = 512 << random.below(5);
        let step = 512 * (1 + random.below(16));
        let count = 1 + random.below((image.size / 2 / step).clamp(1, 200));
        line.value(random, "count", &count.to_string());
        line.value(random, "buffer-size", &size.to_string());
        line.value(random, "step-size", &step.to_string());
        if random.one_in(2) {
            let offset = 512 * random.below(8);
            line.value(random, "offset", &offset.to_string());
        }
        if random.one_in(2) {
            let depth = 1 + random.below(16);
            line.value(random, "depth", &depth.to_string());
        }
        if random.one_in(4) {
            let aio = random.pick(&["threads", "io_uring"]);
            line.value(random, "aio", aio);
        }
        line.perhaps(random, 4, "force-share");
        line.perhaps(random, 4, "q");
        self.target(&mut line, &image);
        self.read_in(folder, &line);
    }
}
