use super::*;

/// A function's place and its structure, as this crate has them.
pub(super) struct Layout {
    pub(super) name: &'static str,
    pub(super) slot: usize,
    pub(super) size_in: fn(i32) -> usize,
    pub(super) offsets: fn() -> Vec<usize>,
}

/// As C has them: each line is a name, its place in the table (in both versions), then `sizeof` and every `offsetof` of
/// its structure, first as a C compiler gives them for `pjrt_c_api.h` of 0.81, then as libclang did for 0.114, in
/// `pypjrt` 0.1.1.
const FIGURES: &str = include_str!("layouts.txt");

struct Figures {
    slot: Option<usize>,
    sizes: [usize; 2],
    offsets: [Vec<usize>; 2],
}

fn figures(name: &str) -> Figures {
    let line = FIGURES.lines().find(|line| line.split(' ').next() == Some(name));
    let words: Vec<&str> = line.unwrap_or_else(|| panic!("no figures of {name}")).split(' ').collect();
    let number = |word: &str| word.parse().unwrap();
    let list = |word: &str| word.split(',').map(number).collect();
    Figures {
        slot: words[1].parse().ok(),
        sizes: [number(words[2]), number(words[4])],
        offsets: [list(words[3]), list(words[5])],
    }
}

fn compare(name: &str, size_in: fn(i32) -> usize, offsets: &[usize]) {
    let figures = figures(name);
    assert_eq!([size_in(81), size_in(114)], figures.sizes, "{name}");
    for version in 0..2 {
        let size = figures.sizes[version];
        let ours: Vec<usize> = offsets.iter().copied().filter(|&offset| offset < size).collect();
        assert_eq!(ours, figures.offsets[version], "{name}");
    }
}

#[test]
fn structures_and_slots_are_those_of_the_header() {
    for layout in FUNCTIONS {
        assert_eq!(figures(layout.name).slot, Some(layout.slot), "{}", layout.name);
        // Its optional figures are pairs here.
        if layout.name != "PJRT_Device_MemoryStats" {
            compare(layout.name, layout.size_in, &(layout.offsets)());
        }
    }
    compare("PJRT_NamedValue", NamedValue::size_in, &NamedValue::offsets());
    compare("PJRT_Program", Program::size_in, &Program::offsets());
    compare("PJRT_ExecuteOptions", ExecuteOptions::size_in, &ExecuteOptions::offsets());
}

#[test]
fn memory_figures_are_where_the_header_has_them() {
    let name = "PJRT_Device_MemoryStats";
    let mut offsets = DeviceMemoryStats::offsets();
    let others = mem::offset_of!(DeviceMemoryStats, others);
    offsets.extend((1..6).map(|index| others + index * size_of::<Stat>()));
    let flags =
        offsets.iter().filter(|&&offset| offset > 24).map(|offset| offset + mem::offset_of!(Stat, is_set));
    let mut offsets: Vec<usize> = offsets.iter().copied().chain(flags).collect();
    offsets.sort_unstable();
    compare(name, DeviceMemoryStats::size_in, &offsets);
}

#[test]
fn a_tiled_layout_is_a_head_its_tiles_and_its_kind() {
    let (outer, tiled) = (figures("PJRT_Buffer_MemoryLayout"), figures("PJRT_Buffer_MemoryLayout_Tiled"));
    assert_eq!(TiledLayout::size_in(81), outer.sizes[0]);
    assert_eq!(TiledLayout::size_in(114), outer.sizes[1]);
    let tiles = tiled.offsets[0].iter().map(|offset| 16 + offset);
    let expected: Vec<usize> = [0, 8].into_iter().chain(tiles).chain([72]).collect();
    assert_eq!(TiledLayout::offsets(), expected);
    assert_eq!(outer.offsets[0].last(), Some(&72));
}

/// A table that ends before the function, or has null for it, must not be read past its end.
#[test]
fn a_function_beyond_the_table_is_missing() {
    #[repr(C)]
    struct Table {
        head: ApiHead,
        functions: [usize; 12],
    }
    let head = |functions: usize| ApiHead {
        struct_size: TABLE_OFFSET + functions * 8,
        extensions: ptr::null(),
        version_size: 24,
        version_extensions: ptr::null(),
        major: 0,
        minor: 81,
    };
    let table = |functions| Box::leak(Box::new(Table { head: head(functions), functions: [0; 12] }));
    // The slots of the client's functions are filled with the address of one that must not be called.
    for (count, filled, present) in
        [(12, true, true), (12, false, false), (11, true, false), (0, true, false)]
    {
        let table = table(count);
        if filled {
            table.functions[ClientDestroy::SLOT] = never as *const () as usize;
        }
        // SAFETY: the table lives as long as the process.
        let api = unsafe { Api::new((table as *const Table).cast()) }.unwrap();
        assert_eq!(api.has::<ClientDestroy>(), present, "{count} {filled}");
        if !present {
            // SAFETY: nothing is called, since the function is missing.
            let error = unsafe { api.call(ClientDestroy::default()) }.err().unwrap();
            assert!(error.to_string().contains("PJRT_Client_Destroy"), "{error}");
        }
    }
}

extern "C" fn never(_: *mut c_void) -> *mut c_void {
    panic!("called")
}

#[test]
fn newer_versions_get_room() {
    let table = |minor| {
        let head = ApiHead {
            struct_size: TABLE_OFFSET,
            extensions: ptr::null(),
            version_size: 24,
            version_extensions: ptr::null(),
            major: 0,
            minor,
        };
        // SAFETY: the table lives as long as the process.
        unsafe { Api::new((Box::leak(Box::new(head)) as *const ApiHead).cast()) }.unwrap()
    };
    assert_eq!(table(75).size(ExecuteOptions::size_in), 80);
    assert_eq!(table(81).size(ExecuteOptions::size_in), 112);
    assert_eq!(table(114).size(ExecuteOptions::size_in), 144);
    assert_eq!(table(115).size(ExecuteOptions::size_in), size_of::<Roomy<ExecuteOptions>>());
    assert!(size_of::<Roomy<ExecuteOptions>>() > size_of::<ExecuteOptions>());
}
