use super::*;
use crate::{
    Code, CompileOptions, Format, Plugin, proto,
    testing::{CPU_PLUGINS, CpuPlugin},
};

/// An HLO module that adds two `s32[4]`, the first of which must become the sum.
fn module() -> Vec<u8> {
    let message = |fields: &[(u64, &[u8])]| {
        let mut out = Vec::new();
        fields.iter().for_each(|&(field, bytes)| proto::write_bytes(&mut out, field, bytes));
        out
    };
    let with = |mut out: Vec<u8>, integers: &[(u64, u64)]| {
        integers.iter().for_each(|&(field, value)| proto::write_integer(&mut out, field, value));
        out
    };
    // `ShapeProto`: element type 4 is s32; the layout is row-major.
    let layout = message(&[(1, &[0])]);
    let shape = with(message(&[(3, &[4]), (5, &layout)]), &[(2, 4)]);
    let program_shape = message(&[(1, &shape), (1, &shape), (2, &shape), (3, b"state"), (3, b"by")]);
    let parameter = |name: &[u8], index| {
        let instruction = message(&[(1, name), (2, b"parameter"), (3, &shape)]);
        with(instruction, &[(9, index), (35, index + 1)])
    };
    let sum = with(message(&[(1, b"sum"), (2, b"add"), (3, &shape), (36, &[1, 2])]), &[(35, 3)]);
    let instructions: [(u64, &[u8]); 3] =
        [(2, &parameter(b"state", 0)), (2, &parameter(b"by", 1)), (2, &sum)];
    let head = message(&[(1, b"main"), (4, &program_shape)]);
    let computation = with([head, message(&instructions)].concat(), &[(5, 7), (6, 3)]);
    // Kind 2 is `MUST_ALIAS`; the shape indices are empty, since nothing is a tuple.
    let alias = message(&[(1, &with(Vec::new(), &[(2, 0), (4, 2)]))]);
    let module = [(1, &b"step"[..]), (2, b"main"), (3, &computation), (4, &program_shape), (8, &alias)];
    with(message(&module), &[(5, 1), (6, 7)])
}

fn with_each(check: impl Fn(&CpuPlugin, &Client)) {
    for published in &CPU_PLUGINS {
        check(published, &Plugin::open(published.path()).unwrap().client(&[]).unwrap());
    }
}

fn upload(client: &Client, values: [i32; 4]) -> Buffer {
    let bytes: Vec<u8> = values.into_iter().flat_map(i32::to_le_bytes).collect();
    client.upload(0, &bytes, ElementType::S32, &[4]).unwrap()
}

#[test]
fn hlo_is_compiled_and_its_alias_takes_a_donated_buffer() {
    with_each(|_, client| {
        let program = client.compile(&module(), Format::Hlo, &CompileOptions::default()).unwrap();
        let signature = Signature::new(ElementType::S32, &[4]).unwrap();
        assert_eq!(program.parameters(), Some(&[signature.clone(), signature][..]));
        let (state, by) = (upload(client, [1, 2, 3, 4]), upload(client, [10, 20, 30, 40]));
        // As `execute` calls it, but so that the buffer can be looked at afterwards.
        let mut outputs = vec![vec![ptr::null_mut(); 1]];
        let mut done = vec![ptr::null_mut(); 1];
        let inputs = [vec![state.raw(), by.raw()]];
        // SAFETY: the buffers are alive, and there is room for one output and one event.
        unsafe { program.start(&inputs, &[1], &mut outputs, &mut done) }.unwrap();
        // SAFETY: both are new, and nobody else's.
        let (sum, done) = unsafe {
            let sum = Buffer::new(client.clone(), outputs[0][0], program.outputs()[0].clone(), 0);
            (sum, Event::new(client.clone(), done[0]))
        };
        done.wait().unwrap();
        assert!(state.is_deleted().unwrap());
        assert!(!by.is_deleted().unwrap());
        let expected: Vec<u8> = [11, 22, 33, 44_i32].into_iter().flat_map(i32::to_le_bytes).collect();
        assert_eq!(sum.to_vec().unwrap(), expected);
        assert!(matches!(state.to_vec(), Err(PjrtError::Call { .. })));
    });
}

/// Some plugins copy it, others refuse.
#[test]
fn a_borrowed_buffer_stays_even_if_it_must_be_aliased() {
    with_each(|_, client| {
        let program = client.compile(&module(), Format::Hlo, &CompileOptions::default()).unwrap();
        let (state, by) = (upload(client, [1; 4]), upload(client, [2; 4]));
        match program.execute(vec![vec![(&state).into(), (&by).into()]]) {
            Ok(sum) => assert_eq!(sum.outputs[0][0].to_vec().unwrap(), 3_i32.to_le_bytes().repeat(4)),
            Err(PjrtError::Call { code: Code::InvalidArgument, message, .. }) => {
                assert!(message.contains("must-alias"), "{message}");
            }
            Err(error) => panic!("{error}"),
        }
        assert_eq!(state.to_vec().unwrap(), 1_i32.to_le_bytes().repeat(4));
        let sum = program.execute(vec![vec![state.into(), (&by).into()]]).unwrap().wait().unwrap();
        assert_eq!(sum[0][0].to_vec().unwrap(), 3_i32.to_le_bytes().repeat(4));
    });
}

#[test]
fn threads_may_share_everything() {
    fn check<T: Send + Sync>() {}
    check::<(Client, Executable, Buffer, Event, Plugin, PjrtError)>();
}
