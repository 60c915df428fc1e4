//go:build amd64 && !purego

#include "textflag.h"

// func addTwo(d, e, a, b *float32, n int)
TEXT ·addTwo(SB), NOSPLIT, $0-40
	MOVQ d+0(FP), DI
	MOVQ e+8(FP), R8
	MOVQ a+16(FP), SI
	MOVQ b+24(FP), DX
	MOVQ n+32(FP), CX
	SHLQ $2, CX
	XORQ AX, AX
	MOVQ CX, BX
	ANDQ $~127, BX
	JEQ rest

wide:
	VMOVUPS (SI)(AX*1), Y0
	VMOVUPS 32(SI)(AX*1), Y1
	VMOVUPS 64(SI)(AX*1), Y2
	VMOVUPS 96(SI)(AX*1), Y3
	VADDPS (DX)(AX*1), Y0, Y0
	VADDPS 32(DX)(AX*1), Y1, Y1
	VADDPS 64(DX)(AX*1), Y2, Y2
	VADDPS 96(DX)(AX*1), Y3, Y3
	VMOVUPS Y0, (DI)(AX*1)
	VMOVUPS Y1, 32(DI)(AX*1)
	VMOVUPS Y2, 64(DI)(AX*1)
	VMOVUPS Y3, 96(DI)(AX*1)
	VMOVUPS Y0, (R8)(AX*1)
	VMOVUPS Y1, 32(R8)(AX*1)
	VMOVUPS Y2, 64(R8)(AX*1)
	VMOVUPS Y3, 96(R8)(AX*1)
	ADDQ $128, AX
	CMPQ AX, BX
	JLT wide

rest:
	CMPQ AX, CX
	JGE done
	VMOVUPS (SI)(AX*1), Y0
	VADDPS (DX)(AX*1), Y0, Y0
	VMOVUPS Y0, (DI)(AX*1)
	VMOVUPS Y0, (R8)(AX*1)
	ADDQ $32, AX
	JMP rest

done:
	VZEROUPPER
	RET

// ROUND rounds the eight floats of Y<x> to bf16 in the low halves of its lanes;
// Y13 is 1, Y14 is 0x7fff, Y15 is 0x40 in every lane.
#define ROUND(x, t, u) \
	VPSRLD $16, x, t \
	VPAND Y13, t, u \
	VPADDD Y14, u, u \
	VPADDD x, u, u \
	VPSRLD $16, u, u \
	VPOR Y15, t, t \
	VCMPPS $3, x, x, x \
	VPBLENDVB x, t, u, x

// func encodeBF16(dst *uint16, src *float32, n int)
TEXT ·encodeBF16(SB), NOSPLIT, $0-24
	MOVQ dst+0(FP), DI
	MOVQ src+8(FP), SI
	MOVQ n+16(FP), CX
	VPCMPEQD Y13, Y13, Y13
	VPSRLD $17, Y13, Y14
	VPSRLD $31, Y13, Y13
	VPSLLD $6, Y13, Y15

loop:
	VMOVUPS (SI), Y0
	VMOVUPS 32(SI), Y1
	ROUND(Y0, Y2, Y3)
	ROUND(Y1, Y4, Y5)
	VPACKUSDW Y1, Y0, Y0
	VPERMQ $0xD8, Y0, Y0
	VMOVDQU Y0, (DI)
	ADDQ $64, SI
	ADDQ $32, DI
	SUBQ $16, CX
	JGT loop
	VZEROUPPER
	RET

// func decodeBF16(dst *float32, src *uint16, n int)
TEXT ·decodeBF16(SB), NOSPLIT, $0-24
	MOVQ dst+0(FP), DI
	MOVQ src+8(FP), SI
	MOVQ n+16(FP), CX

loop:
	VPMOVZXWD (SI), Y0
	VPMOVZXWD 16(SI), Y1
	VPSLLD $16, Y0, Y0
	VPSLLD $16, Y1, Y1
	VMOVDQU Y0, (DI)
	VMOVDQU Y1, 32(DI)
	ADDQ $32, SI
	ADDQ $64, DI
	SUBQ $16, CX
	JGT loop
	VZEROUPPER
	RET

// func addBF16(dst *float32, src *uint16, n int)
TEXT ·addBF16(SB), NOSPLIT, $0-24
	MOVQ dst+0(FP), DI
	MOVQ src+8(FP), SI
	MOVQ n+16(FP), CX

loop:
	VMOVUPS (DI), Y2
	VMOVUPS 32(DI), Y3
	VPMOVZXWD (SI), Y0
	VPMOVZXWD 16(SI), Y1
	VPSLLD $16, Y0, Y0
	VPSLLD $16, Y1, Y1
	VADDPS Y0, Y2, Y2
	VADDPS Y1, Y3, Y3
	VMOVUPS Y2, (DI)
	VMOVUPS Y3, 32(DI)
	ADDQ $32, SI
	ADDQ $64, DI
	SUBQ $16, CX
	JGT loop
	VZEROUPPER
	RET

// func encodeF16(dst *uint16, src *float32, n int)
TEXT ·encodeF16(SB), NOSPLIT, $0-24
	MOVQ dst+0(FP), DI
	MOVQ src+8(FP), SI
	MOVQ n+16(FP), CX

loop:
	VMOVUPS (SI), Y0
	VMOVUPS 32(SI), Y1
	VCVTPS2PH $0, Y0, (DI)
	VCVTPS2PH $0, Y1, 16(DI)
	ADDQ $64, SI
	ADDQ $32, DI
	SUBQ $16, CX
	JGT loop
	VZEROUPPER
	RET

// func decodeF16(dst *float32, src *uint16, n int)
TEXT ·decodeF16(SB), NOSPLIT, $0-24
	MOVQ dst+0(FP), DI
	MOVQ src+8(FP), SI
	MOVQ n+16(FP), CX

loop:
	VCVTPH2PS (SI), Y0
	VCVTPH2PS 16(SI), Y1
	VMOVUPS Y0, (DI)
	VMOVUPS Y1, 32(DI)
	ADDQ $32, SI
	ADDQ $64, DI
	SUBQ $16, CX
	JGT loop
	VZEROUPPER
	RET

// func addF16(dst *float32, src *uint16, n int)
TEXT ·addF16(SB), NOSPLIT, $0-24
	MOVQ dst+0(FP), DI
	MOVQ src+8(FP), SI
	MOVQ n+16(FP), CX

loop:
	VMOVUPS (DI), Y2
	VMOVUPS 32(DI), Y3
	VCVTPH2PS (SI), Y0
	VCVTPH2PS 16(SI), Y1
	VADDPS Y0, Y2, Y2
	VADDPS Y1, Y3, Y3
	VMOVUPS Y2, (DI)
	VMOVUPS Y3, 32(DI)
	ADDQ $32, SI
	ADDQ $64, DI
	SUBQ $16, CX
	JGT loop
	VZEROUPPER
	RET
