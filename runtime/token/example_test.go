package token_test

import (
	"context"
	"fmt"

	"github.com/open-autoglm/autoglm/runtime/token"
)

func Example() {
	tr, err := token.NewTrainer(token.TrainConfig{VocabSize: 320, MinFrequency: 2, Threads: 1})
	if err != nil {
		panic(err)
	}
	tr.Add([]byte("the cat and the hat and the bat"))
	tok, err := tr.Train(context.Background())
	if err != nil {
		panic(err)
	}
	ids := tok.Encode(nil, "the rat")
	for _, id := range ids {
		fmt.Printf("%q ", tok.Symbol(id))
	}
	fmt.Println(tok.Decode(ids))
	// Output: "the" " " "r" "at" the rat
}
