// A peer for the side-by-side benchmark: gorilla/websocket, every message to every connection.
//
// Lean and idiomatic: a goroutine for each connection, which reads and hands on what it has read; a
// prepared message, so that each is framed once; write buffers from a pool. Each message is a write of
// its own; the library has nothing to gather several messages in one. With --deflate it negotiates compression, and a
// prepared message is compressed once.
package main

import (
	"fmt"
	"log"
	"net"
	"net/http"
	"os"
	"sync"

	"github.com/gorilla/websocket"
)

var upgrader = websocket.Upgrader{
	ReadBufferSize:  1024,
	WriteBufferPool: &sync.Pool{},
	CheckOrigin:     func(*http.Request) bool { return true },
}

// hub is who is connected. Its lock is held for a whole broadcast, since a connection takes one writer
// at a time.
type hub struct {
	sync.Mutex
	connections map[*websocket.Conn]struct{}
}

func (h *hub) broadcast(kind int, payload []byte) {
	message, err := websocket.NewPreparedMessage(kind, payload)
	if err != nil {
		return
	}
	h.Lock()
	defer h.Unlock()
	for connection := range h.connections {
		// Whoever fails to write fails to read, too, and is taken out there.
		_ = connection.WritePreparedMessage(message)
	}
}

func (h *hub) serve(w http.ResponseWriter, r *http.Request) {
	connection, err := upgrader.Upgrade(w, r, nil)
	if err != nil {
		return
	}
	h.Lock()
	h.connections[connection] = struct{}{}
	h.Unlock()
	// Not in the handler, which would keep the request and the server's buffers for as long as it runs.
	go h.read(connection)
}

func (h *hub) read(connection *websocket.Conn) {
	for {
		kind, payload, err := connection.ReadMessage()
		if err != nil {
			break
		}
		h.broadcast(kind, payload)
	}
	h.Lock()
	delete(h.connections, connection)
	h.Unlock()
	connection.Close()
}

func main() {
	upgrader.EnableCompression = len(os.Args) > 1 && os.Args[1] == "--deflate"
	hub := &hub{connections: map[*websocket.Conn]struct{}{}}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("listening on ws://%s/ws\n", listener.Addr())
	http.HandleFunc("/ws", hub.serve)
	log.Fatal(http.Serve(listener, nil))
}
