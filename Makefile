# What a person types. Everything else is cargo.
SKIFF := target/release/skiff
NAME ?= default

.PHONY: up demo test down build setup images

# A cluster in the background.
up: setup build
	@$(SKIFF) status --name $(NAME) 2>/dev/null || $(SKIFF) up --detach --name $(NAME)
	@echo
	@echo "Next:   kubectl get nodes          (no kubectl? apt-get install kubernetes-client)"
	@echo "        make demo                  deploys dockercoins"
	@echo "        make down                  stops the cluster"

# dockercoins on it.
demo: up images
	@scripts/demo.sh

down: build
	@$(SKIFF) down --name $(NAME)

# Every test; the last line counts them.
test:
	@scripts/test.sh

setup:
	@scripts/setup.sh run

build:
	@cargo build --release --quiet -p skiff

images:
	@dockercoins/images.sh
