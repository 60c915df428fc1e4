package daemon

import (
	"context"
	"fmt"
	"net/http"

	"github.com/open-autoglm/autoglm/actors/node"
	"github.com/open-autoglm/autoglm/runtime/search"
)

// An order of a user's for a job's search goes to the leader, which knows the node that
// carries the job out, and from there to that node.

// steering is an order on its way from the leader to the job's node.
type steering struct {
	ID    string       `json:"id"`
	Epoch uint64       `json:"epoch"`
	Order search.Order `json:"order"`
}

func (d *Daemon) steerJob(c *chief, w http.ResponseWriter, r *http.Request) error {
	var o search.Order
	if err := body(r, &o, maxAsk); err != nil {
		return err
	}
	o.By = r.Header.Get(userHeader)
	o, err := c.steer(r.Context(), r.PathValue("id"), o)
	if err != nil {
		return err
	}
	return answer(w, http.StatusOK, o)
}

// steer passes an order on to the job's node. It is committed when this returns nil.
func (c *chief) steer(ctx context.Context, id string, o search.Order) (search.Order, error) {
	c.mu.Lock()
	j := c.reg.jobs[id]
	if j == nil {
		c.mu.Unlock()
		return o, fmt.Errorf("%s: %w", id, errNoJob)
	}
	q, state, home := steering{id, j.Epoch, o}, j.State, j.Node
	c.mu.Unlock()
	if state != Running {
		return o, &node.Refusal{Why: fmt.Sprintf("%s is %s; the search of a job that runs can be steered", id, state)}
	}
	m, alive := c.d.members.Member(home)
	if !alive {
		return o, &StatusError{http.StatusServiceUnavailable, fmt.Sprintf("the node of %s is gone, and the job goes on elsewhere soon; say it again then", id)}
	}
	var out search.Order
	err := call(ctx, c.d.client, http.MethodPost, "http://"+m.Addr+"/internal/steer", q, &out)
	return out, err
}

// steer has the search of a job in hand take an order.
func (h *hands) steer(q steering) (search.Order, error) {
	h.mu.Lock()
	r := h.running[q.ID]
	var n *node.Node
	if r != nil && r.Epoch == q.Epoch {
		n = r.node
	}
	h.mu.Unlock()
	if n == nil {
		return q.Order, &node.Refusal{Why: fmt.Sprintf("%s is just beginning on its node; try again", q.ID)}
	}
	return n.Steer(q.Order)
}
